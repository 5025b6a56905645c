"""Tiny checkpoints of the models that score, in the layout that the real ones are published in."""

import json
import shutil
import textwrap
from pathlib import Path

import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from recipes.common.score_models import ScoreModels
from recipes.common.utmos import WEIGHTS_URL

UTMOS_WEIGHTS = WEIGHTS_URL.rpartition("/")[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_score_models(folder: Path) -> ScoreModels:
    """Save one of each kind; their weights are the same each time."""
    torch.manual_seed(0)
    return ScoreModels(
        utmos=save_utmos(folder / "utmos"),
        asr=save_whisper(folder / "whisper"),
        speaker=save_xvector(folder / "xvector"),
        speaker_strict=save_ecapa(folder / "ecapa"),
    )


def save_whisper(folder: Path, *, multilingual: bool = True, says: str | None = None) -> Path:
    """Save a Whisper that says letters and spaces, other ones for other audio.

    ``says`` is the one character that it shall say to everything; empty for nothing.
    """
    tokenizer = _whisper_tokenizer(multilingual=multilingual)
    token_id = tokenizer.convert_tokens_to_ids
    ends = {f"{name}_token_id": token_id("<|endoftext|>") for name in ("bos", "eos", "pad")} | {
        "decoder_start_token_id": token_id("<|startoftranscript|>")
    }
    config = WhisperConfig(
        vocab_size=51_865 if multilingual else 51_864,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=24,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **ends,
    )
    model = WhisperForConditionalGeneration(config)
    _teach_to_say(model, tokenizer, says=says)
    languages = {f"<|{code}|>": token_id(f"<|{code}|>") for code in LANGUAGES}
    tasks = {task: token_id(f"<|{task}|>") for task in ("transcribe", "translate")}
    extra = {"lang_to_id": languages, "task_to_id": tasks} if multilingual else {}
    model.generation_config = GenerationConfig(
        is_multilingual=multilingual,
        no_timestamps_token_id=token_id("<|notimestamps|>"),
        max_length=24,
        **ends,
        **extra,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    (folder / "normalizer.json").write_text(json.dumps({"colour": "color"}))
    return folder


def save_xvector(folder: Path) -> Path:
    """Save a WavLM with an x-vector head, of the class of microsoft/wavlm-base-sv."""
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_buckets=32,
        max_bucket_distance=80,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        tdnn_dim=(16, 16, 16, 16, 24),
        xvector_output_dim=12,
    )
    model = WavLMForXVector(config)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(5)  # or little of the audio reaches the embedding
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def tiny_ecapa() -> ECAPA_TDNN:
    return ECAPA_TDNN(
        input_size=80,
        lin_neurons=12,
        channels=[16, 16, 16, 16, 24],
        attention_channels=6,
        se_channels=5,
        res2net_scale=4,
    ).eval()


def save_ecapa(folder: Path, model: ECAPA_TDNN | None = None) -> Path:
    """Save an ECAPA-TDNN as SpeechBrain publishes it, beside a YAML that must not be run."""
    folder.mkdir(parents=True)
    torch.save((model or tiny_ecapa()).state_dict(), folder / "embedding_model.ckpt")
    (folder / "hyperparams.yaml").write_text("x: !apply:os.mkdir [was_run]\n")
    return folder


def save_utmos(folder: Path, *, gain: float = 1.0) -> Path:
    """Write a repository with the interface of SpeechMOS: 3 + gain x the mean square.

    Its package has the name of the wheel with DNSMOS, and its hubconf would go to the network for
    weights that are not switched off.
    """
    package = folder / "speechmos" / "utmos22"
    package.mkdir(parents=True)
    (folder / "speechmos" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "model.py").write_text(
        textwrap.dedent("""
            import torch

            class Model(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.gain = torch.nn.Parameter(torch.empty(1))

                def forward(self, wave, sr):
                    assert sr == 16000 and wave.ndim == 2 and not self.training
                    return 3 + self.gain * wave.square().mean(1)
        """)
    )
    (folder / "hubconf.py").write_text(
        textwrap.dedent("""
            dependencies = ["torch"]

            from speechmos.utmos22.model import Model

            def utmos22_strong(progress=True, pretrained=True):
                if pretrained:
                    raise OSError("would download")
                return Model()
        """)
    )
    torch.save({"gain": torch.tensor([gain])}, folder / UTMOS_WEIGHTS)
    return folder


def put_into_hub_cache(folder: Path, cache: Path, repo: str) -> Path:
    """Lay out a checkpoint as the Hugging Face hub caches it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, root / "snapshots" / COMMIT))


def _whisper_tokenizer(*, multilingual: bool) -> WhisperTokenizer:
    tokenizer = WhisperTokenizer(
        vocab={symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]
    )
    languages = [f"<|{code}|>" for code in LANGUAGES] if multilingual else []
    names = "translate transcribe startoflm startofprev nospeech notimestamps".split()
    special = ["<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in names)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


@torch.no_grad()
def _teach_to_say(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, *, says: str | None
) -> None:
    """Let it know letters and spaces alone, and large weights tell audio apart."""
    embeddings = model.model.decoder.embed_tokens.weight  # of inputs and outputs
    embeddings[:256] = 0
    embeddings[len(tokenizer) :] = 0
    if says is not None:
        model.model.decoder.layer_norm.weight.zero_()
        model.model.decoder.layer_norm.bias.fill_(1.0)
        embeddings[tokenizer.convert_tokens_to_ids(says or "<|endoftext|>")] = 10.0
        return
    layer = model.model.decoder.layers[0]
    layer.self_attn.out_proj.weight.zero_()  # or what was said decides what is said next
    model.model.decoder.embed_positions.weight.normal_()
    for parameter in model.model.encoder.parameters():
        if parameter.ndim > 1:
            parameter.mul_(20)
    model.model.encoder.embed_positions.weight.zero_()
    for projection, gain in (("q_proj", 100), ("k_proj", 100), ("v_proj", 60), ("out_proj", 60)):
        getattr(layer.encoder_attn, projection).weight.mul_(gain)
    symbols = tokenizer.convert_tokens_to_ids([*"abcdefgh", *"ĠĠ"])
    embeddings[256:] *= 0.1
    embeddings[symbols] = torch.randn(len(symbols), embeddings.shape[1])
