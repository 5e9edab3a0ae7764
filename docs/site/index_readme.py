"""Print the README for a package index, which shows no relative paths: links and pictures get absolute addresses.

    python docs/site/index_readme.py --base-url https://example.org/pml_extensions/ > README.index.md

Where pages and raw files have different addresses, as on code hosts, pictures get --image-url.
"""

import argparse
import re
import sys
from pathlib import Path
from urllib.parse import urljoin

README = Path(__file__).parents[2] / "README.md"
TARGET = re.compile(r"(!?)(\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)(\))")


def absolute(text: str, base_url: str, image_url: str) -> str:
    """Return Markdown whose relative links and pictures lead to the two addresses."""

    def target(found: re.Match[str]) -> str:
        picture, before, path, after = found.groups()
        return f"{picture}{before}{urljoin(image_url if picture else base_url, path)}{after}"

    return TARGET.sub(target, text)


def address(text: str) -> str:
    """Return an address that a path can be put behind."""
    if not re.match(r"https?://\w", text):
        raise argparse.ArgumentTypeError(f"must begin with http:// or https://, got {text!r}")
    return text.rstrip("/") + "/"


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", type=address, required=True, help="where the repository's files lie")
    parser.add_argument("--image-url", type=address, help="where pictures lie as such (default: the base URL)")
    arguments = parser.parse_args()
    sys.stdout.write(absolute(README.read_text(), arguments.base_url, arguments.image_url or arguments.base_url))


if __name__ == "__main__":
    main()
