# ruff: noqa: E402
"""Head-and-neck organs on real planning CT: our U-Net beside MONAI's DynUNet, on the same patches for the same steps.

    python benchmarks/ct_openkbp.py [--quick] [--json FILE] [--cache DIR] [--recipe two_cores|gpu] [--set KEY=VALUE]

Data: OpenKBP (VERTICALS_DATA/ct/Dataset001_OpenKBP), its own split: 99 scans train, 16 choose, 25 test. Both networks see
the same patches with the same augmentation in the same order and answer through the same Predictor, all in bfloat16; the peer has
its published optimizer, schedule and loss (nnU-Net's). Each training is checkpointed in `--cache` and goes on from there; ours
lies there as a run, for `ct_speed.py`. The recipe `two_cores` takes at most 45 minutes a model; on a GPU give `--recipe gpu
--device cuda`. Without the data, or with `--quick`, synthetic bodies and few steps show that the line works; such figures mean
nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from benchmarks.tables import Record, goal, keep, table
from benchmarks.training import kept, trained
from core.contract import Step, TensorSpec
from core.device import machine, pick_device, seed_everything
from core.evaluation.cases import case_comparisons, case_figures
from core.inference.session import TorchSession
from core.training.loop import FitConfig
from core.training.optim import OptimConfig
from verticals.medical.ct.application import constants
from verticals.medical.ct.application import task as task_of
from verticals.medical.ct.config import RECIPES, CtConfig, DataConfig, PlanConfig, SamplerConfig
from verticals.medical.ct.data import CtData
from verticals.medical.ct.evaluation import SCORES, Evaluation, evaluate
from verticals.medical.ct.loader import Batch
from verticals.medical.ct.model import InstanceNorm
from verticals.medical.ct.plan import Plan
from verticals.medical.ct.predictor import CtPredictor
from verticals.medical.ct.synthetic import SyntheticConfig


class DynUNet(nn.Module):
    """MONAI's network with the settings that its authors publish, at the plan's patch."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet as Net

        strides = [list(stride) for stride in plan.strides]
        self.net: Any = Net(
            spatial_dims=3,
            in_channels=1,
            out_channels=plan.num_classes,
            kernel_size=[[3, 3, 3]] * len(strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            norm_name="instance",
            deep_supervision=True,
            deep_supr_num=max(1, len(strides) - 2),
            res_block=False,
        )
        for module in list(self.net.modules()):  # the same function, without copies of what lies channels last
            for name, child in module.named_children():
                if isinstance(child, nn.InstanceNorm3d):
                    setattr(module, name, InstanceNorm(child.num_features, affine=child.affine))
        self.inputs = (TensorSpec("image", ("window", 1, *plan.patch_size)),)
        self.outputs = (TensorSpec("logits", ("window", plan.num_classes, *plan.patch_size)),)
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, image: Tensor) -> Tensor:
        answers: Tensor = self.net(image)
        return answers


class DynUNetTask(nn.Module):
    """MONAI's own loss; each coarser answer weighs half as much as the next finer one."""

    def __init__(self, model: DynUNet) -> None:
        super().__init__()
        from monai.losses.dice import DiceCELoss

        self.model = model
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)

    def forward(self, batch: Batch) -> Step:
        levels = self.model(batch.image).float().unbind(1)
        weights = [0.5**level for level in range(len(levels))]
        target = batch.target[:, None]
        parts = [weight * self.loss(logits, target) for weight, logits in zip(weights, levels, strict=True)]
        loss = torch.stack(parts).sum() / sum(weights)
        return Step(loss, {})


def config_of(given: argparse.Namespace) -> CtConfig:
    """The recipe: what both share is data, plan and sampler; the optimizer is ours."""
    source = Path(os.environ.get("VERTICALS_DATA", "")) / "ct/Dataset001_OpenKBP"
    if given.quick or "VERTICALS_DATA" not in os.environ:
        return CtConfig(
            data=DataConfig(synthetic=SyntheticConfig(num_cases=6, shape=(40, 36, 40), spacing_mm=(6.0, 8.0))),
            plan=PlanConfig(patch_size=(32, 32, 32), batch_size=1, base_width=8, max_levels=3, deep_supervision=True),
            sampler=SamplerConfig(num_batches=20),
            fit=FitConfig(epochs=1, precision="bf16", optim=OptimConfig(lr=3e-3)),
        )
    cache = Path(given.cache) / "prepared" if given.cache else ""
    return RECIPES[given.recipe]().override([f"data.sources=['{source}']", f"data.cache='{cache}'", *given.set])


PEER = OptimConfig(
    optimizer="sgd", lr=1e-2, weight_decay=3e-5, warmup=0.0, schedule="polynomial", average=0.0, clip_norm=12.0
)
"""What nnU-Net and MONAI's DynUNet pipeline train with."""


def ours(config: CtConfig, data: CtData) -> tuple[nn.Module, OptimConfig]:
    return task_of(config, data), config.fit.optim


def dynunet(config: CtConfig, data: CtData) -> tuple[nn.Module, OptimConfig]:
    return DynUNetTask(DynUNet(data.plan)), PEER


MODELS: dict[str, Callable[[CtConfig, CtData], tuple[nn.Module, OptimConfig]]] = {"ours": ours, "dynunet": dynunet}


def network(name: str, config: CtConfig, data: CtData, folder: Path, device: torch.device) -> tuple[Any, float]:
    """The task, trained or taken up where it stopped, and the seconds that training took in all."""
    seed_everything(config.fit.seed)
    task, optim = MODELS[name](config, data)
    fitted = config.fit.model_copy(update={"optim": optim})
    settings = config.model_copy(update={"fit": fitted}).model_dump_json(
        indent=1, exclude={"predict": True, "data": {"cache"}}
    )
    return task, trained(folder, name, task, data, fitted, settings=settings, device=device)


def judged(config: CtConfig, data: CtData, task: Any, split: str, device: torch.device) -> Evaluation:
    """Figures of a split through the Predictor."""
    session = TorchSession(task.model, device=device, precision="bfloat16")
    predictor = CtPredictor(config, {"plan": data.plan.model_dump(mode="json")}, session, version="benchmark")
    return evaluate(predictor, data, split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="synthetic bodies and few steps, under a minute")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--cache", metavar="DIR", help="checkpoints and prepared scans, kept")
    parser.add_argument("--recipe", default="two_cores", choices=("two_cores", "gpu"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe, for both")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch (default: all cores)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = pick_device(given.device)
    config = config_of(given)
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(given.cache or spare)
        folder.mkdir(parents=True, exist_ok=True)
        data = CtData(config)
        print(data.plan.text, file=sys.stderr)
        found: dict[str, Evaluation] = {}
        seconds: dict[str, float] = {}
        for name in given.models:
            task, seconds[name] = network(name, config, data, folder, device)
            found[name] = judged(config, data, task, given.split, device)
            if given.cache and name == "ours":
                kept(
                    folder / "run",
                    application="medical.ct",
                    recipe=given.recipe,
                    config=config.to_yaml(),
                    fingerprint=data.fingerprint,
                    constants=constants(config, data, task),
                    network=task.model,
                    report={**found[name].record(), "text": found[name].text},
                )
            print(f"{name}: {seconds[name]:.0f} s\n{found[name].text}", file=sys.stderr, flush=True)
        report(given, config, data, found, seconds)


def report(
    given: argparse.Namespace, config: CtConfig, data: CtData, found: dict[str, Evaluation], seconds: dict[str, float]
) -> None:
    """Tables, the paired comparison and goals."""
    real, on_gpu = bool(config.data.sources), pick_device(given.device).type == "cuda"
    here = machine()
    rows: list[Record] = []
    for score in SCORES:
        for name, evaluation in found.items():
            for figure, value in evaluation.figures.items():
                if figure.split(" ")[0] == score:
                    organ = figure.partition(" ")[2] or "mean of the organs"
                    interval = f"{value.low:.3f} to {value.high:.3f}"
                    rows.append({"score": score, "organ": organ, "model": name, "mean": value.value, "95 %": interval, "scans": value.n})  # fmt: skip
    steps = config.fit.epochs * config.sampler.num_batches
    table(
        f"{'OpenKBP (real planning CT)' if real else 'synthetic bodies'}, {given.split} split, {steps} steps of {data.plan.batch_size} x {data.plan.patch_size}",
        rows,
        f"{here['gpu'] or here['cpu']}, {here['cores']} cores, torch {here['torch']}; trained for "
        + ", ".join(f"{name} {taken / 60:.1f} min" for name, taken in seconds.items()),
    )
    goals, paired = [], {}
    if len(found) == 2:
        one, other = found["ours"].scores, found["dynunet"].scores
        paired = case_comparisons(one, other)
        table(
            "ours minus DynUNet, the same scans",
            [
                {
                    "score": name,
                    "difference": it.difference,
                    "95 %": f"{it.low:+.4f} to {it.high:+.4f}",
                    "p": it.p_value,
                }
                for name, it in paired.items()
            ],
        )
        worse = [name for name, it in paired.items() if (it.high < 0 if "dice" in name else it.low > 0)]
        lower = [name for name, it in paired.items() if name.startswith("dice ") and it.difference < 0]
        goals.append(
            goal(f"on no organ significantly below the peer (below in Dice at all: {lower or 'none'})", not worse)
        )
    if real and "ours" in found and given.split == "test":
        mean, least = case_figures({"dice": found["ours"].scores["dice"]})["dice"].value, 0.85 if on_gpu else 0.80
        goals.append(
            goal(f"mean Dice at least {least} {'with a GPU' if on_gpu else 'on two cores'}: {mean:.3f}", mean >= least)
        )
    if real and not on_gpu:
        over = [name for name, taken in seconds.items() if taken > 45 * 60]
        goals.append(goal("each model trained within 45 minutes", not over))
        print("  mean Dice at least 0.85 with a GPU: not run (on the CPU)")
    keep(
        given.json,
        machine=here,
        config=config.model_dump(mode="json"),
        plan=data.plan.model_dump(mode="json"),
        seconds=seconds,
        figures={name: evaluation.record() for name, evaluation in found.items()},
        paired={name: it.record() for name, it in paired.items()},
        goals=goals,
    )


if __name__ == "__main__":
    main()
