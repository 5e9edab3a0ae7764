"""The documentation as a site: all public names are in the reference, images are there, no page is too wide."""

import functools
import html
import importlib
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import pml_extensions

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
ROOT = Path(__file__).parents[1]
PHONE = 390
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# Loads one page after the other in a frame as wide as a phone, and sends back how wide the content of each is.
MEASURE = """<!doctype html><body><script>
(async () => {
  const widths = {};
  for (const page of PAGES) {
    const frame = document.createElement("iframe");
    Object.assign(frame, { width: WIDTH, height: 800, src: page });
    frame.style.border = 0;
    const loaded = new Promise((done) => { frame.onload = done; });
    document.body.append(frame);
    await loaded;
    widths[page] = frame.contentDocument.documentElement.scrollWidth;
    frame.remove();
  }
  await fetch("/", { method: "POST", body: JSON.stringify(widths) });
})();
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site, as the README says."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("package", pml_extensions.__all__)
def test_every_public_name_is_in_the_reference(site, package):
    page = (site / "reference" / package / "index.html").read_text()
    name = f"pml_extensions.{package}"
    public = importlib.import_module(name).__all__
    assert public
    assert [one for one in public if f'id="{name}.{one}"' not in page] == []


def test_images_are_there(site):
    for page in site.rglob("*.html"):
        sources = re.findall(r'<img[^>]* src="([^"]+)"', page.read_text())
        assert [one for one in sources if not (page.parent / html.unescape(one)).is_file()] == [], page


class Serving(SimpleHTTPRequestHandler):
    """Hand out files, and keep what is sent back."""

    def do_POST(self):
        self.server.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed, so no page's width can be measured")
def test_no_page_is_wider_than_a_phone(site, tmp_path):
    pages = [f"/{path.parent.relative_to(site)}/" for path in site.rglob("index.html")]
    (site / "measure.html").write_text(MEASURE.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(PHONE)))
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Serving, directory=site)) as server:
        server.answers = queue.Queue()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        address = f"http://127.0.0.1:{server.server_port}/measure.html"
        with subprocess.Popen([BROWSER, *settings, address], stderr=subprocess.DEVNULL) as browser:
            try:
                widths = server.answers.get(timeout=300)
            except queue.Empty:
                pytest.skip(f"{BROWSER} does not run here, so no page's width can be measured")
            finally:
                browser.terminate()
                server.shutdown()
    assert set(widths) == set(pages)
    assert {page: width for page, width in widths.items() if width > PHONE} == {}


def test_llms_txt_tells_what_to_import_and_when_not(site):
    text = (site / "llms.txt").read_text()
    for package in pml_extensions.__all__:
        module = importlib.import_module(f"pml_extensions.{package}")
        assert [name for name in module.__all__ if f"`from {module.__name__} import {name}`: " not in text] == []
    for heading in ("What to import", "Which method when", "When each does not help", "Pitfalls", "Pages"):
        assert re.search(rf"^##+ {heading}$", text, re.MULTILINE)
    linked = re.findall(r"\]\((?!https?:)([^)#]*)", text)
    assert linked
    assert [one for one in linked if not (site / one / "index.html").is_file()] == []
