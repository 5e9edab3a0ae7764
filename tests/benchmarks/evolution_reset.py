"""Time a reset against three copies of the weights, and a split against building the model; prints a Markdown table.

python tests/benchmarks/evolution_reset.py
"""

import statistics
import warnings

import timm
from interleaved import DEVICE, interleaved, machine, ratio

from pml_extensions.evolution import WELS, KnowledgeEvolution, LayerDefault, ShrinkPerturb

MODELS = ("resnet18", "resnet50", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")


def main() -> None:
    warnings.filterwarnings("ignore", category=UserWarning)
    print(machine())
    print()
    rules = "reset / 3 copies | layer default | shrink-perturb"
    print(f"| model | M weights | masks, MB | 3 copies, ms | {rules} | split / build |")
    print("|---|---|---|---|---|---|---|---|")
    for name in MODELS:
        model = timm.create_model(name).to(DEVICE)
        weights = [model.get_parameter(key).detach() for key in WELS(0.5)(model)]
        evolutions = {
            "reset": KnowledgeEvolution(model, WELS(0.5)),
            "layer default": KnowledgeEvolution(model, WELS(0.5), rule=LayerDefault()),
            "shrink-perturb": KnowledgeEvolution(model, WELS(0.5), rule=ShrinkPerturb(0.5, 0.01)),
        }
        samples = interleaved(
            {
                "copies": lambda weights=weights: [[weight.clone() for weight in weights] for _ in range(3)],
                **{key: evolution.reset for key, evolution in evolutions.items()},
                "build": lambda name=name: timm.create_model(name).to(DEVICE),
                "split": lambda model=model: KnowledgeEvolution(model, WELS(0.5)),
            },
            rounds=7,
        )
        size = sum(weight.numel() for weight in weights) / 1e6
        copies = 1e3 * statistics.median(samples["copies"])
        ratios = " | ".join(f"{ratio(samples, key, 'copies'):.2f}" for key in evolutions)
        masks = sum(mask.nbytes for mask in evolutions["reset"].masks.values()) / 1e6
        splitting = ratio(samples, "split", "build")
        print(f"| {name} | {size:.1f} | {masks:.1f} | {copies:.0f} | {ratios} | {splitting:.2f} |")


if __name__ == "__main__":
    main()
