"""Speech enhancement and separation on tokens (arXiv:2502.04465, section 4.5, appendices D.2, F.4).

    python -m recipes.train_separator recipes/hparams/enhancement.yaml --data_folder VOICEBANK
    python -m recipes.train_separator recipes/hparams/separation.yaml --data_folder LIBRIMIX

A Conformer reads the tokens of a noisy or mixed signal, or its continuous features
(``--read features``), and gives the tokens of each clean source; the test decodes and scores them.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from focalcodec.masking import lengths_to_mask
from recipes.codecs.codec import Codec
from recipes.common.mixing import load_input, load_targets
from recipes.common.scoring import SAMPLE_RATE
from recipes.downstream.brain import TokenBrain, sequences, tensor_of
from recipes.downstream.corpus import Corpus, Rows, keep
from recipes.downstream.evaluation import Tested
from recipes.downstream.experiment import make_datasets, make_model, run_task
from recipes.downstream.token_losses import permutation_invariant

TARGETS = ("target_toks", "target_2_toks")


class Separation(NamedTuple):
    """What is trained and on what."""

    model: nn.Module
    datasets: Mapping[sb.Stage, DynamicItemDataset]


class SeparatorBrain(TokenBrain):
    """Cross-entropy of the sources' tokens in the order that suits each utterance best, in nats."""

    selection_key = "cross_entropy"
    decodes = True

    @classmethod
    def check(cls, hparams: Mapping[str, Any]) -> None:
        """Also refuse what cannot be read, and numbers of sources that no corpus has."""
        super().check(hparams)
        read, sources = hparams["read"], hparams["num_sources"]
        if read not in ("tokens", "features"):
            raise ValueError(f"read must be tokens or features, got {read!r}")
        if not 1 <= sources <= len(TARGETS):
            raise ValueError(f"num_sources must be 1 or {len(TARGETS)}, got {sources}")
        if read == "features" and hparams["data_folder"] is None:
            raise ValueError("features are computed from audio; pass --data_folder, too")

    @property
    def task_name(self) -> str:
        """One source is enhanced, several are separated."""
        return "enhancement" if self.hparams.num_sources == 1 else "separation"

    def loss_terms(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy of a batch, and the share of right tokens."""
        terms, count, _ = self._predict(batch)
        return terms, count

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Cross-entropy; what is scored or written is decoded."""
        terms, count, hyps = self._predict(batch)
        subset = stage.name.lower()
        sizes = sequences(batch.target_toks).mask.sum(dim=1).tolist()
        for utt_id, toks, size in zip(batch.id, hyps, sizes, strict=True):
            if self.audio_scores.is_chosen(utt_id, subset=subset):
                self._score(utt_id, toks[:, :size], stage)
        return {name: float(term) for name, term in terms.items()}, float(count)

    def tests(self) -> list[Tested]:
        """Scores of the decoded sources."""
        return [self.audio_test("evaluation", settings={"read": self.hparams.read})]

    def _predict(self, batch: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Terms, their weight, and (B, S, L, K) tokens in the targets' order."""
        refs, mask = sequences(batch.target_toks)
        refs = refs.transpose(1, 2)  # (B, S, L, K)
        x, x_mask = self._read(batch)
        logits = self.modules.model(x, mask=x_mask)
        loss, order = permutation_invariant(logits, refs, mask=mask)
        hyps = in_order(logits.argmax(dim=-1), order)
        right = (hyps == refs) & mask[:, None, :, None]
        count = mask.sum()
        accuracy = right.sum() / (count * refs.shape[1] * refs.shape[3])
        return {"cross_entropy": loss, "accuracy": accuracy}, count, hyps

    def _read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Give what the model reads of a batch, and its mask."""
        if self.hparams.read == "tokens":
            return sequences(batch.toks)
        with torch.autocast(self.device_type, enabled=False):
            return features(self.codec, *sequences(batch.sig))

    def _score(self, utterance: str, toks: Tensor, stage: sb.Stage) -> None:
        row = self.task.datasets[stage].data[utterance]["row"]
        targets = load_targets(row, sample_rate=SAMPLE_RATE)
        mixture = load_input(row, sample_rate=SAMPLE_RATE)
        for number, (ref_sig, source) in enumerate(zip(targets, toks, strict=True), 1):
            part = f"-{number}" if len(targets) > 1 else ""
            decoded = self.decode(utterance + part, {"hyp": source}, num_samples=len(ref_sig))
            signals = {**decoded, "input": mixture}
            self.score_signals(utterance, ref_sig, signals, stage=stage, part=part)


def in_order(hyps: Tensor, order: Tensor) -> Tensor:
    """(B, S, L, K) outputs in the order of the references; ``order`` as of `Assignment`."""
    return hyps.gather(1, order[:, :, None, None].expand_as(hyps))


@torch.no_grad()
def features(codec: Codec, sig: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Continuous features (B, N, H) of signals (B, T), each alone, and their mask (B, N)."""
    rows = [
        codec.sig_to_feats(row[None, :size])[0]
        for row, size in zip(sig, mask.sum(dim=1).tolist(), strict=True)
    ]
    sizes = torch.tensor([len(row) for row in rows], device=sig.device)
    return pad_sequence(rows, batch_first=True), lengths_to_mask(sizes, int(sizes.max()))


def assemble(hparams: dict[str, Any], corpus: Corpus) -> Separation:
    """Make a model for the codec's tokens or features, and datasets with as many targets.

    Raises
    ------
    ValueError : if the codec has no features to read, or there are other targets than
        ``num_sources``.
    """
    names = TARGETS[: hparams["num_sources"]]
    rows = {subset: _targeted(subset, corpus.rows[subset], names) for subset in corpus.rows}
    items = {"target_toks": lambda row: torch.stack([tensor_of(row[n]) for n in names], dim=1)}
    sizes: dict[str, int] = {}
    if hparams["read"] == "tokens":
        items["toks"] = lambda row: tensor_of(row["toks"])
    else:
        if not corpus.codec.has_feats:
            raise ValueError(f"{corpus.codec.name} gives no features; pass --read tokens")
        rate = corpus.codec.sample_rate
        items["sig"] = lambda row: load_input(row, sample_rate=rate)
        sizes = feature_sizes(corpus.codec)
    datasets = make_datasets(corpus._replace(rows=rows), items=items, sorting=hparams["sorting"])
    model = make_model(hparams, corpus, num_sources=hparams["num_sources"], **sizes)
    return Separation(model, datasets)


def feature_sizes(codec: Codec) -> dict[str, int]:
    """Channels of a codec's features, and how many frames one token has."""
    num_toks = 8
    silence = torch.zeros(1, num_toks * codec.samples_per_tok, device=codec.device)
    _, num_frames, dim = codec.sig_to_feats(silence).shape
    return {"feats_dim": dim, "frames_per_tok": num_frames // num_toks}


def _targeted(subset: str, rows: Rows, names: tuple[str, ...]) -> Rows:
    """Rows that have all targets, as long as the tokens that are read."""
    reasons = {}
    for utt_id, row in rows.items():
        lengths = [len(row[name]) for name in names if row.get(name) is not None]
        if len(lengths) < len(names):
            reasons[utt_id] = (
                f"it has {len(lengths)} of {len(names)} targets; choose a dataset of mixtures, "
                "such as dataset/voicebank_enhancement.yaml or dataset/libri2mix.yaml"
            )
        elif set(lengths) != {len(row["toks"])}:
            reasons[utt_id] = f"{len(row['toks'])} tokens of the input, {lengths} of the targets"
    return keep(rows, reasons, subset=subset)


if __name__ == "__main__":
    run_task(SeparatorBrain, assemble, sys.argv[1:])
