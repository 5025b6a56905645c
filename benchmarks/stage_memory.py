"""Memory that each training stage needs at full size, with random weights.

    python -m benchmarks.stage_memory --batch 16 --seconds 16

On a CUDA device the peak of one real step at that batch size is measured. On a CPU one real step is
run at two small batch sizes, each in a process of its own, and the peak is continued linearly to
the batch size asked for: activations grow with the batch, weights and optimizer states do not. That
is computed, not measured, and marked so in the output.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"decoder": "vocos.yaml", "quantizer": "bsq.yaml"}
SMALL = (1, 3)  # batch sizes of the runs on a CPU


class Batch(SimpleNamespace):
    """Utterances of noise, as the loaders would give them."""

    def to(self, device: str) -> "Batch":
        """Move the signals."""
        return Batch(id=self.id, sig=tuple(part.to(device) for part in self.sig))


def peak_of_step(stage: str, batch: int, seconds: float, device: str) -> int:
    """Bytes at the peak of one training step, without what the interpreter and libraries take."""
    from hyperpyyaml import load_hyperpyyaml

    from train_decoder import DecoderBrain
    from train_quantizer import QuantizerBrain

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as folder:
        overrides = f"data_folder: none\noutput_folder: {folder}\n"
        with open(ROOT / "hparams" / STAGES[stage], encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, overrides)
        brain_class = {"decoder": DecoderBrain, "quantizer": QuantizerBrain}[stage]
        brain = brain_class(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts={"device": device, "noprogressbar": True},
            checkpointer=hparams["checkpointer"],
        )
        brain.num_batches = {brain_stage: 1 for brain_stage in _stages()}
        brain.on_fit_start()
        brain.modules.train()
        brain.step = 1
        sig = 0.1 * torch.randn(batch, round(seconds * brain.encoder.sample_rate))
        brain.fit_batch(Batch(id=[str(i) for i in range(batch)], sig=(sig, torch.ones(batch))))
        brain.run_log.close()
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _stages() -> list:
    import speechbrain as sb

    return list(sb.Stage)


def _in_child(*arguments: object) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of_step, arguments)


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="utterances")
    parser.add_argument("--seconds", type=float, default=16.0, help="length of every utterance")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    print(f"{'stage':12}{'GiB at batch ' + str(arguments.batch):>20}  how")
    for stage in STAGES:
        if arguments.device.startswith("cuda"):
            peak = _in_child(stage, arguments.batch, arguments.seconds, arguments.device)
            how = f"measured on {torch.cuda.get_device_name()}"
        else:
            low, high = (_in_child(stage, size, arguments.seconds, "cpu") for size in SMALL)
            slope = (high - low) / (SMALL[1] - SMALL[0])
            peak = low + slope * (arguments.batch - SMALL[0])
            how = (
                f"computed from CPU peaks of {low / 2**30:.2f} and {high / 2**30:.2f} GiB at batch "
                f"{SMALL[0]} and {SMALL[1]}"
            )
        print(f"{stage:12}{peak / 2**30:20.1f}  {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
