"""Text to speech on tokens (arXiv:2502.04465, section 4.5 and appendix D.2).

    python -m recipes.train_tts recipes/hparams/tts.yaml --data_folder LIBRISPEECH

A Llama decoder reads a speaker vector of the utterance and its characters, and gives tokens. Two
protocols of the test: by default one sample, which the model itself ends; with ``--paper_protocol
True`` also the paper's, the best of five samples, all as long as the reference.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from torch import Tensor, nn

from recipes.common.known_metrics import METRICS
from recipes.common.mixing import load_target
from recipes.common.score_models import named_models
from recipes.common.scoring import SAMPLE_RATE, MissingWeightsError, ScoreError
from recipes.common.shards import SpeakerVectors, open_shards
from recipes.common.speaker_similarity import load_speaker_model
from recipes.common.transcripts import Transcriber, dwer, load_transcriber
from recipes.downstream.brain import TokenBrain, seed_of, sequences, tensor_of
from recipes.downstream.corpus import (
    Corpus,
    Rows,
    fill_shards,
    keep,
    read_manifests,
    read_rows,
)
from recipes.downstream.evaluation import Tested
from recipes.downstream.experiment import make_datasets, make_model, run_task
from recipes.downstream.sampling import Generated, generate
from recipes.downstream.text import Tokenizer, load_tokenizer, plain_words

SAMPLES = 5  # of the paper's protocol, of which the best is kept


class Synthesis(NamedTuple):
    """What is trained, on what, and the characters."""

    model: nn.Module
    datasets: Mapping[sb.Stage, DynamicItemDataset]
    tokenizer: Tokenizer


class TTSBrain(TokenBrain):
    """Cross-entropy of tokens and end, in nats."""

    task_name = "tts"
    selection_key = "cross_entropy"
    decodes = True

    @classmethod
    def check(cls, hparams: Mapping[str, Any]) -> None:
        """Also refuse metrics that compare sample by sample."""
        super().check(hparams)
        if aligned := [name for name in hparams["metrics"] if METRICS[name].is_aligned]:
            raise ValueError(
                f"{', '.join(aligned)} compare sample by sample, which generated speech does not "
                "allow; leave them out of metrics"
            )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transcriber, self.no_transcriber = self._transcriber()

    def loss_terms(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy of a batch."""
        toks, mask = sequences(batch.toks)
        prediction = self.modules.model(**self._prompt(batch), toks=toks, num_toks=mask.sum(dim=1))
        return {"cross_entropy": prediction.loss()}, prediction.mask.sum()

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Cross-entropy; what is scored or written is spoken."""
        terms, count = self.loss_terms(batch)
        subset = stage.name.lower()
        chosen = [
            row
            for row, utt_id in enumerate(batch.id)
            if self.audio_scores.is_chosen(utt_id, subset=subset)
        ]
        if chosen:
            self._speak(batch, torch.tensor(chosen, device=self.device), stage)
        return {name: float(term) for name, term in terms.items()}, float(count)

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Share of the generated utterances that the model did not end itself."""
        values = super().stage_values(stage)
        if self.test_rows:
            cut = sum(row["not_ended"] for row in self.test_rows)
            values["not_ended"] = cut / len(self.test_rows)
        return values

    def tests(self) -> list[Tested]:
        """Report both protocols, as far as they were asked for."""
        settings = {"protocol": "one sample, end token"}
        tests = [self.audio_test("evaluation", rows=self.test_rows, settings=settings)]
        if self.hparams.paper_protocol:
            paper = self.audio_test(
                "evaluation_paper",
                hyp="paper",
                settings={"protocol": f"best of {SAMPLES}, length of the reference"},
            )
            if self.transcriber is None:
                missing = dict.fromkeys(self.audio_scores.names, self.no_transcriber)
                paper = paper._replace(not_computed=missing)
            tests.append(paper)
        return tests

    def _prompt(self, batch: Any) -> dict[str, Tensor]:
        characters, mask = sequences(batch.characters)
        # Every row ends in a sign of its own, so that none is empty where SpeechBrain pads.
        return {
            "characters": characters,
            "num_chars": mask.sum(dim=1) - 1,
            "speaker": batch.vector.data,
        }

    def _speak(self, batch: Any, chosen: Tensor, stage: sb.Stage) -> None:
        """Generate, decode and score some rows of a batch."""
        prompt = {name: values[chosen] for name, values in self._prompt(batch).items()}
        ids = [batch.id[row] for row in chosen.tolist()]
        ref_toks = sequences(batch.toks).mask.sum(dim=1)[chosen]
        generated = self._generate(ids, prompt, sample=0)
        samples = []
        if self._follows_paper(stage):
            samples = [
                self._generate(ids, prompt, sample=number, num_toks=ref_toks)
                for number in range(1, 1 + SAMPLES)
            ]
        for number, utt_id in enumerate(ids):
            row = self.task.datasets[stage].data[utt_id]["row"]
            ref_sig = load_target(row, sample_rate=SAMPLE_RATE)
            toks = generated.toks[number]
            self.test_rows.append(
                {
                    "id": utt_id,
                    "not_ended": float(not generated.ended[number]),
                    "length_ratio": len(toks) / int(ref_toks[number]),
                }
            )
            drawn = {f"paper {n}": sample.toks[number] for n, sample in enumerate(samples, 1)}
            decoded = self.decode(utt_id, {"hyp": toks, **drawn})
            signals = {"hyp": decoded.pop("hyp")} if "hyp" in decoded else {}
            if decoded:
                language = row.get("language") or "en"
                signals["paper"] = best(
                    [*decoded.values()], ref_sig, transcriber=self.transcriber, language=language
                )
            self.score_signals(utt_id, ref_sig, signals, stage=stage)

    def _generate(
        self,
        ids: list[str],
        prompt: dict[str, Tensor],
        *,
        sample: int,
        num_toks: Tensor | None = None,
    ) -> Generated:
        room = self.model.max_positions - self.model.num_positions(prompt["num_chars"], 0)
        wanted = round(self.hparams.max_generated_s * self.corpus.description["token_rate"])
        return generate(
            self.model,
            **prompt,
            max_toks=room.clamp(max=wanted) if num_toks is None else num_toks,
            seeds=[seed_of(self.hparams.seed, utt_id, sample) for utt_id in ids],
            num_toks=num_toks,
            top_p=self.hparams.top_p,
            temperature=self.hparams.temperature,
        )

    def _follows_paper(self, stage: sb.Stage) -> bool:
        asked = stage == sb.Stage.TEST and self.hparams.paper_protocol
        return asked and self.transcriber is not None

    def _transcriber(self) -> tuple[Transcriber | None, str]:
        """Speech recognizer that chooses the best of the paper's samples, or why there is none."""
        if not self.hparams.paper_protocol:
            return None, ""
        models = named_models(self.hparams.score_models, device=str(self.device))
        try:
            return load_transcriber(models.asr, device=models.device), ""
        except MissingWeightsError as error:
            return None, f"the paper's protocol keeps the sample of fewest word errors: {error}"


def best(sigs: list[Tensor], ref_sig: Tensor, *, transcriber: Transcriber, language: str) -> Tensor:
    """Signal of the fewest word errors against the transcript of the reference; ties: the first.

    Parameters
    ----------
    sigs, ref_sig : (T,) at 16 kHz.
    transcriber : of `recipes.common.transcripts`.
    language : what is spoken, ISO 639-1.
    """

    def errors(sig: Tensor) -> float:
        try:
            options = {"sample_rate": SAMPLE_RATE, "transcriber": transcriber}
            return dwer(ref_sig, sig, language=language, **options).dwer
        except ScoreError:
            return float("inf")

    return min(sigs, key=errors)


def assemble(hparams: dict[str, Any], corpus: Corpus) -> Synthesis:
    """Learn the characters, add speaker vectors, and make the model.

    Raises
    ------
    ValueError : if the training set has no transcripts.
    FileNotFoundError, MissingWeightsError : if the speaker model is missing.
    """
    plain = plain_words if hparams["normalize_text"] else str
    vectors = speaker_vectors(hparams, device=corpus.device)
    rows = {
        subset: _spoken(subset, corpus.rows[subset], vectors[subset], plain)
        for subset in corpus.rows
    }
    tokenizer = load_tokenizer(
        Path(hparams["output_folder"]),
        (row["text"] for row in rows["train"].values()),
        unit="char",
        vocabulary_size=0,
        write=if_main_process(),
    )
    speaker_dim = len(next(iter(rows["train"].values()))["vector"])
    model = make_model(hparams, corpus, num_characters=tokenizer.num_units, speaker_dim=speaker_dim)
    rows = {subset: _fitting(subset, rows[subset], model, tokenizer) for subset in rows}
    items = {
        "toks": lambda row: tensor_of(row["toks"]),
        "characters": lambda row: torch.tensor([*tokenizer.encode(row["text"]), 0]),
        "vector": lambda row: torch.from_numpy(row["vector"].copy()),
    }
    datasets = make_datasets(corpus._replace(rows=rows), items=items, sorting=hparams["sorting"])
    return Synthesis(model, datasets, tokenizer)


def speaker_vectors(hparams: dict[str, Any], *, device: str) -> dict[str, Rows]:
    """Speaker vector of every utterance, from shards that are filled first; every rank calls it.

    Parameters
    ----------
    hparams : keys of the YAML; manifests are in ``output_folder``.
    device : of the speaker model.

    Raises
    ------
    MissingWeightsError, FileNotFoundError : if the speaker model is missing.
    ValueError : if there are neither data nor vectors.
    """
    folder = Path(hparams["vectors_folder"] or Path(hparams["output_folder"], "vectors"))
    manifests = read_manifests(hparams)
    if manifests is None and hparams["vectors_folder"] is None:
        raise ValueError(
            "speaker vectors are computed from audio: pass --data_folder CORPUS, or "
            "--vectors_folder FOLDER where another run has computed them"
        )
    if manifests is not None:
        source = hparams["speaker_model"]
        model = load_speaker_model(source, field="speaker", device=device)
        extractor = SpeakerVectors(model, name=f"speaker vectors of {source}")
        fill_shards(folder, manifests, hparams, extractor=extractor, device=device)
    return read_rows(open_shards(folder), None)


def _spoken(subset: str, rows: Rows, vectors: Rows, plain: Any) -> Rows:
    """Rows with a transcript and a speaker vector."""
    reasons = {
        utt_id: "it has no transcript" if row.get("text") is None else "it has no speaker vector"
        for utt_id, row in rows.items()
        if row.get("text") is None or utt_id not in vectors
    }
    return {
        utt_id: {**row, "text": plain(row["text"]), "vector": vectors[utt_id]["vector"]}
        for utt_id, row in keep(rows, reasons, subset=subset).items()
    }


def _fitting(subset: str, rows: Rows, model: nn.Module, tokenizer: Tokenizer) -> Rows:
    """Rows that are no longer than the model can be."""
    reasons = {}
    for utt_id, row in rows.items():
        num_chars, num_toks = len(tokenizer.encode(row["text"])), len(row["toks"])
        if not model.fits(num_chars, num_toks):
            reasons[utt_id] = (
                f"its {num_chars} characters and {num_toks} tokens need "
                f"{model.num_positions(num_chars, num_toks)} positions, and max_positions is "
                f"{model.max_positions}"
            )
    return keep(rows, reasons, subset=subset)


if __name__ == "__main__":
    run_task(TTSBrain, assemble, sys.argv[1:])
