"""Trains nano's text encoder and decoder on the codes of synthesised songs, and writes the checkpoint.

`python -m workers.engines.musicgen.nano.language_model FOLDER --codec CODEC` resumes a run that was stopped;
`--start` starts from the weights in a checkpoint's folder.
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from workers.engines.musicgen.nano import codec, words
from workers.engines.musicgen.nano.codec import CODEBOOK_SIZE, NUM_CODEBOOKS, encode_to_codes
from workers.engines.musicgen.nano.descriptions import describe
from workers.engines.musicgen.nano.heads import AuxiliaryHeads
from workers.engines.musicgen.nano.instruments import FRAME_RATE
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import (
    CLIP_SECONDS,
    MAX_TEMPO,
    MIN_TEMPO,
    WINDOW_SECONDS,
    Song,
    compose,
    play,
)

STEPS: Final = 3_200
NUM_CLIPS: Final = 3_000
FIRST_SEED: Final = 1_000_000
# More songs, of which only the first second is used: it decides most of the attributes that a prompt names.
NUM_SHORT_CLIPS: Final = 20_000
SHORT_FIRST_SEED: Final = 2_000_000
SHORT_FRAMES: Final = FRAME_RATE
SHORT_BATCH_SIZE: Final = 32
# The codec's encoder looks ahead, so the audio has to be this much longer than the codes.
LOOKAHEAD_FRAMES: Final = 10
VALIDATION_CLIPS: Final = 24
CLIPS_PER_FILE: Final = 250
TEXT_DROPOUT: Final = 0.12
WORD_DROPOUT: Final = 0.02
LEARNING_RATE: Final = 1.5e-3
IGNORE_INDEX: Final = -100
PAD_TOKEN_ID: Final = CODEBOOK_SIZE
# The sinusoidal position embeddings have a standard deviation of 0.65. Code embeddings of transformers' default, 0.02,
# are lost beside them for a thousand steps and more.
EMBEDDING_INIT_STD: Final = 0.5
LM_HEAD_INIT_STD: Final = 0.05
# A step has so many frames, of clips that are cropped to their start, or every third time of whole ones: cropped clips
# teach nearly as much in a fourth of the time, but not how a song goes on after ten seconds.
BATCH_FRAMES: Final = 6_000
CROP_FRAMES: Final = round(CLIP_SECONDS * FRAME_RATE)
WHOLE_EVERY: Final = 3
# Frame t has a loss weight of 1 + EARLY_FRAME_WEIGHT / t: the first frames decide most of the attributes that a prompt
# names, and later frames follow them.
EARLY_FRAME_WEIGHT: Final = 20.0
AUXILIARY_LOSS_WEIGHT: Final = 0.3
AUXILIARY_LAYER: Final = 3
# The losses of the heads are also taken on so many frames with every code masked: a decoder that counts beats, and
# knows its instruments, from the prompt and the position alone does not drift.
MASKED_FRAMES: Final = 2_000
# In half of the clips the decoder hears another song's codes in up to this share of the pieces of PIECE_FRAMES: it
# learns to return to the prompt after codes that do not fit it. It then expects that such codes may come again, and
# draws too freely, until the last steps have unlearnt that.
WRONG_SHARE: Final = 0.4
PIECE_FRAMES: Final = 10
WRONG_STEPS_SHARE: Final = 0.8


def config(vocab_size: int) -> MusicgenConfig:
    return MusicgenConfig(
        text_encoder=T5Config(
            vocab_size=vocab_size, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
        ),
        audio_encoder=codec.config(),
        decoder=MusicgenDecoderConfig(
            vocab_size=CODEBOOK_SIZE,
            hidden_size=256,
            ffn_dim=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_codebooks=NUM_CODEBOOKS,
            # The frames of a window and the codebooks' delay: later positions are never trained.
            max_position_embeddings=round(WINDOW_SECONDS * FRAME_RATE) + NUM_CODEBOOKS - 1,
            pad_token_id=PAD_TOKEN_ID,
            bos_token_id=PAD_TOKEN_ID,
            dropout=0.0,
        ),
    )


def build_model(codebooks: torch.Tensor) -> tuple[Any, Any]:
    """An untrained network and its tokenizer, for codebooks `[NUM_CODEBOOKS, CODEBOOK_SIZE, CODEBOOK_DIM]`.

    Tempi that are close start with similar embeddings, and so do codes that sound alike: their embeddings and LM heads
    are random projections of the codebooks.
    """
    tokenizer: Any = words.build_tokenizer()
    model_class: Any = MusicgenForConditionalGeneration
    network = model_class(config(len(tokenizer)))
    network.decoder.set_attn_implementation("sdpa")
    network.generation_config.update(
        pad_token_id=PAD_TOKEN_ID, bos_token_id=PAD_TOKEN_ID, decoder_start_token_id=PAD_TOKEN_ID
    )
    with torch.no_grad():
        numbers = _number_embeddings(network, tokenizer)
        numbers.copy_(torch.from_numpy(words.tempo_embeddings(numbers.shape[1])))
        width = network.decoder.config.hidden_size
        for index, codebook in enumerate(codebooks):
            normalised = (codebook - codebook.mean(0)) / codebook.std()
            projected = normalised @ torch.randn(codebook.shape[1], width) / codebook.shape[1] ** 0.5
            embedding = network.decoder.model.decoder.embed_tokens[index]
            embedding.weight[:CODEBOOK_SIZE] = EMBEDDING_INIT_STD * projected
            network.decoder.lm_heads[index].weight.copy_(LM_HEAD_INIT_STD * projected)
    return network, tokenizer


def _number_embeddings(network: Any, tokenizer: Any) -> torch.Tensor:
    """The rows of the embedding table for words.NUMBERS, as a view."""
    embedding: torch.Tensor = network.text_encoder.get_input_embeddings().weight
    first = tokenizer.convert_tokens_to_ids(str(words.NUMBERS[0]))
    return embedding[first : first + len(words.NUMBERS)]


def encode_songs(folder: Path, codec_weights: Path, seeds: range, frames: int) -> torch.Tensor:
    """Codes `[songs, NUM_CODEBOOKS, frames]` of the songs' first frames, made on all cores and cached in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [(folder / f"codes-{seed}.npy", codec_weights, seed, frames) for seed in seeds[::CLIPS_PER_FILE]]
    missing = [chunk for chunk in chunks if not chunk[0].exists()]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for done, _ in enumerate(pool.imap_unordered(_encode_chunk, missing), start=1):
            count, total = done * CLIPS_PER_FILE, len(missing) * CLIPS_PER_FILE
            print(f"{time.strftime('%H:%M:%S')} encoded {count} of {total} songs", flush=True)
    return torch.from_numpy(np.concatenate([np.load(chunk[0]) for chunk in chunks]))


@torch.inference_mode()
def _encode_chunk(chunk: tuple[Path, Path, int, int]) -> None:
    path, codec_weights, first_seed, frames = chunk
    torch.set_num_threads(1)
    network, quantiser = codec.load(codec_weights)
    seconds = (frames + LOOKAHEAD_FRAMES) / FRAME_RATE
    seeds = range(first_seed, first_seed + CLIPS_PER_FILE)
    songs = (torch.from_numpy(play(compose(seed), seconds))[None] for seed in seeds)
    codes = [encode_to_codes(network, quantiser, song)[0, :, :frames] for song in songs]
    partial = path.with_suffix(".partial.npy")
    np.save(partial, torch.stack(codes).short().numpy())
    partial.replace(path)


def apply_delay_pattern(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs `[clips · NUM_CODEBOOKS, steps]` and labels `[clips, NUM_CODEBOOKS, steps]` of the decoder.

    `codes` are `[clips, NUM_CODEBOOKS, frames]`. Codebook k is delayed by k steps; the steps that this leaves empty are
    padding in the inputs and IGNORE_INDEX in the labels.
    """
    clips, num_codebooks, frames = codes.shape
    labels = torch.full((clips, num_codebooks, frames + num_codebooks - 1), IGNORE_INDEX)
    for k in range(num_codebooks):
        labels[:, k, k : k + frames] = codes[:, k]
    input_ids = functional.pad(labels, (1, -1), value=PAD_TOKEN_ID)
    input_ids = input_ids.masked_fill(input_ids == IGNORE_INDEX, PAD_TOKEN_ID)
    return input_ids.reshape(clips * num_codebooks, -1), labels


def encode_text(network: Any, tokenizer: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the prompts, `[clips, tokens, hidden_size]`, and their attention mask `[clips, tokens]`."""
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    return network.enc_to_dec_proj(network.text_encoder(**tokens).last_hidden_state), tokens.attention_mask


def forward(
    network: Any,
    codes: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    heard: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each code `[clips, NUM_CODEBOOKS, frames]`, and the hidden states of layer AUXILIARY_LAYER.

    The hidden states are `[clips, frames, hidden_size]`; those of a frame depend on earlier frames only. The decoder
    hears the codes themselves before each frame, or the codes `heard` of the same shape.
    """
    input_ids, labels = apply_delay_pattern(codes.long())
    if heard is not None:
        input_ids, _ = apply_delay_pattern(heard.long())
    frames = codes.shape[2]
    outputs = _run_decoder(network.decoder, input_ids, encoder_hidden_states, attention_mask)
    logits = outputs.logits.float().view(len(codes), NUM_CODEBOOKS, -1, CODEBOOK_SIZE)
    losses = functional.cross_entropy(logits.movedim(-1, 1), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (
        torch.stack([losses[:, k, k : k + frames] for k in range(NUM_CODEBOOKS)], dim=1),
        outputs.hidden_states[AUXILIARY_LAYER][:, :frames].float(),
    )


def codebook_losses(
    network: Any, tokenizer: Any, codes: torch.Tensor, prompts: list[str], keep_text: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of each codebook, `[NUM_CODEBOOKS]`.

    `keep_text` is `[clips]`: 0 makes the hidden states of a clip's prompt zero, 1 leaves them.
    """
    hidden_states, attention_mask = encode_text(network, tokenizer, prompts)
    return forward(network, codes, hidden_states * keep_text[:, None, None], attention_mask)[0].mean((0, 2))


def masked_hidden_states(
    network: Any, frames: int, encoder_hidden_states: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """The hidden states of AUXILIARY_LAYER, `[clips, frames, hidden_size]`, with every code replaced by padding."""
    input_ids = torch.full((len(encoder_hidden_states) * NUM_CODEBOOKS, frames), PAD_TOKEN_ID)
    outputs = _run_decoder(network.decoder.model.decoder, input_ids, encoder_hidden_states, attention_mask)
    hidden_states: torch.Tensor = outputs.hidden_states[AUXILIARY_LAYER].float()
    return hidden_states


def _run_decoder(
    decoder: Any, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, attention_mask: torch.Tensor
) -> Any:
    """The outputs of a decoder, which may be one without LM heads."""
    with torch.autocast("cpu", torch.bfloat16):
        return decoder(
            input_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=True,
        )


def with_wrong_pieces(codes: torch.Tensor, largest_share: float) -> torch.Tensor:
    """Codes `[clips, NUM_CODEBOOKS, frames]`, in half of the clips with pieces of the clip before."""
    clips, _, frames = codes.shape
    shares = largest_share * torch.rand(clips, 1) * (torch.rand(clips, 1) < 0.5)
    pieces = torch.rand(clips, -(-frames // PIECE_FRAMES)) < shares
    wrong = pieces.repeat_interleave(PIECE_FRAMES, 1)[:, None, :frames]
    return torch.where(wrong, codes.roll(1, 0), codes)


def training_losses(
    network: Any,
    tokenizer: Any,
    heads: AuxiliaryHeads,
    codes: torch.Tensor,
    examples: list[tuple[Song, str]],
    *,
    wrong_share: float,
) -> dict[str, torch.Tensor]:
    """The weighted losses, of which training minimises the sum.

    `codes` are `[clips, NUM_CODEBOOKS, frames]`; `examples` are each clip's song and prompt.
    """
    songs = [song for song, _ in examples]
    text_states, attention_mask = encode_text(network, tokenizer, [prompt for _, prompt in examples])
    keep_text = torch.rand(len(examples)) > TEXT_DROPOUT
    code_losses, decoder_states = forward(
        network, codes, text_states * keep_text[:, None, None], attention_mask, with_wrong_pieces(codes, wrong_share)
    )
    frames = codes.shape[2]
    frame_weights = 1 + EARLY_FRAME_WEIGHT / torch.arange(1, frames + 1)
    plan = heads.plan_loss(decoder_states, songs, has_codes=True)
    losses = {
        "codes": (code_losses * frame_weights / frame_weights.mean()).mean(),
        "attributes": AUXILIARY_LOSS_WEIGHT * heads.attribute_loss(text_states, attention_mask, songs),
        "position": AUXILIARY_LOSS_WEIGHT * heads.position_loss(decoder_states, songs),
        "plan": AUXILIARY_LOSS_WEIGHT * plan,
    }
    if frames > SHORT_FRAMES:
        masked = max(1, MASKED_FRAMES // frames)
        masked_states = masked_hidden_states(network, frames, text_states[:masked], attention_mask[:masked])
        losses["position_masked"] = heads.position_loss(masked_states, songs[:masked])
        losses["plan_masked"] = heads.plan_loss(masked_states, songs[:masked], has_codes=False)
    return losses


def train(
    folder: Path,
    codec_weights: Path,
    steps: int = STEPS,
    num_clips: int = NUM_CLIPS,
    *,
    learning_rate: float = LEARNING_RATE,
    init_from: Path | None = None,
) -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    num_train = num_clips - VALIDATION_CLIPS
    seeds = range(FIRST_SEED, FIRST_SEED + num_clips)
    codes = encode_songs(folder / "codes", codec_weights, seeds, round(WINDOW_SECONDS * FRAME_RATE))
    songs = [compose(seed) for seed in seeds]
    short_seeds = range(SHORT_FIRST_SEED, SHORT_FIRST_SEED + NUM_SHORT_CLIPS)
    short_codes = encode_songs(folder / "beginnings", codec_weights, short_seeds, SHORT_FRAMES)
    trained_codec, quantiser = codec.load(codec_weights)
    network, tokenizer = build_model(quantiser.books)
    if init_from is not None:
        start_from(network, tokenizer, init_from)
    network.audio_encoder.requires_grad_(False)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decay = [parameter for parameter in trainable if parameter.dim() > 1]
    no_decay = [parameter for parameter in trainable if parameter.dim() == 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": no_decay, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    heads = AuxiliaryHeads(network.decoder.config.hidden_size)
    heads_optimiser = torch.optim.AdamW(heads.parameters(), lr=LEARNING_RATE)
    run = Run(folder, steps, network=network, optimiser=optimiser, heads=heads, heads_optimiser=heads_optimiser)
    # The stored state holds an older codec if its decoder was trained further since.
    network.audio_encoder.load_state_dict(trained_codec.state_dict())
    network.train()
    for step in run:
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(learning_rate)
        rng = np.random.default_rng(step)
        frames = codes.shape[2] if step % WHOLE_EVERY == 0 else CROP_FRAMES
        wrong_share = WRONG_SHARE if step < WRONG_STEPS_SHARE * steps else 0.0
        chosen = rng.integers(num_train, size=BATCH_FRAMES // frames)
        short_chosen = rng.integers(NUM_SHORT_CLIPS, size=SHORT_BATCH_SIZE)
        optimiser.zero_grad(), heads_optimiser.zero_grad()
        for batch_codes, batch_songs in (
            (codes[chosen, :, :frames], [songs[index] for index in chosen]),
            (short_codes[short_chosen], [compose(short_seeds[index]) for index in short_chosen]),
        ):
            examples = [(song, _drop_words(describe(song, rng), rng)) for song in batch_songs]
            losses = training_losses(network, tokenizer, heads, batch_codes, examples, wrong_share=wrong_share)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step(), heads_optimiser.step()
        if step % 100 == 0:
            rng = np.random.default_rng(0)
            network.eval()
            with torch.inference_mode():
                prompts = [describe(song, rng) for song in songs[num_train:]]
                held_out = codes[num_train:]
                with_text = codebook_losses(network, tokenizer, held_out, prompts, torch.ones(VALIDATION_CLIPS))
                without_text = codebook_losses(network, tokenizer, held_out, prompts, torch.zeros(VALIDATION_CLIPS))
            network.train()
            train_losses = {name: round(value.item(), 3) for name, value in losses.items()}
            validation = f"{[round(value, 3) for value in with_text.tolist()]} without text {without_text[0]:.3f}"
            print(f"{time.strftime('%H:%M:%S')} step {step} {train_losses} validation {validation}", flush=True)
    save_checkpoint(network, tokenizer, folder / "checkpoint")


def start_from(network: Any, tokenizer: Any, folder: Path) -> None:
    """Takes the weights of a checkpoint, and of its vocabulary the words that the tokenizer has too."""
    model_class: Any = MusicgenForConditionalGeneration
    weights = model_class.from_pretrained(folder, dtype=torch.float32).state_dict()
    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    own = network.state_dict()
    network.load_state_dict(
        {name: value for name, value in weights.items() if value.shape == own[name].shape}, strict=False
    )
    table, start = network.text_encoder.get_input_embeddings().weight, weights["text_encoder.shared.weight"]
    with torch.no_grad():
        for word, row in tokenizer.get_vocab().items():
            if word in known:
                table[row] = start[known[word]]


def save_checkpoint(network: Any, tokenizer: Any, folder: Path) -> None:
    """Writes half precision. Tempi outside the songs' range get the embedding of the nearest one inside."""
    with torch.no_grad():
        numbers = _number_embeddings(network, tokenizer)
        numbers.copy_(numbers[np.clip(words.NUMBERS, MIN_TEMPO, MAX_TEMPO) - words.NUMBERS[0]])
    network.eval().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _drop_words(prompt: str, rng: np.random.Generator) -> str:
    """Replaces a share WORD_DROPOUT of the words by the unknown word, so that the model learns to ignore it."""
    kept = [words.UNK if rng.random() < WORD_DROPOUT else word for word in prompt.split()]
    return " ".join(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codec", dest="codec_weights", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--clips", dest="num_clips", type=int, default=NUM_CLIPS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--start", dest="init_from", type=Path)
    train(**vars(parser.parse_args()))
