"""CLIP through open_clip: unit vectors of texts, of whole images and of their patches, in one space."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stlm.errors import ConfigError, WeightsError
from stlm.nn.teachers import download_checkpoint, read_state

__all__ = ["ClipEncoder", "ImageTokens", "build_clip", "load_clip"]


class ImageTokens(NamedTuple):
    """Unit vectors of a batch, in the space of the texts."""

    image: Tensor
    """``(B, D)`` of the whole images."""
    patches: Tensor
    """``(L, B, h, w, D)`` of their patches, for each of ``L`` blocks."""


class ClipEncoder(nn.Module):
    """A frozen CLIP with one of open_clip's own vision transformers.

    Args:
        clip: ``open_clip.model.CLIP``.
        tokenizer: Texts to ``(N, context_length)`` token numbers.

    Raises:
        WeightsError: The image tower has no class token or no plain attention, so that patches have no text space.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, clip: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        visual: Any = clip.visual
        blocks = list(getattr(getattr(visual, "transformer", None), "resblocks", ()))
        plain = blocks and all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks)
        if not plain or visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
            raise WeightsError(
                f"expected a CLIP with a plain vision transformer and a class token, such as ViT-L-14-336-quickgelu, "
                f"got {type(visual).__name__}"
            )
        self.clip = clip
        self.tokenizer = tokenizer
        self.image_size: tuple[int, int] = visual.image_size
        self.patch_px: int = visual.patch_size[0]
        self.num_blocks = len(blocks)
        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts.

        Args:
            texts: ``N`` texts.

        Returns:
            ``(N, D)`` float32.

        Raises:
            ConfigError: A text is longer than the model reads.
        """
        clip: Any = self.clip
        for text in texts:
            length = len(self.tokenizer.encode(text)) + 2  # start and end
            if length > clip.context_length:
                raise ConfigError(f"text {text!r} has {length} tokens, CLIP reads {clip.context_length}")
        tokens = self.tokenizer(list(texts)).to(self.mean.device)
        embedded: Tensor = clip.encode_text(tokens, normalize=True)
        return embedded

    @torch.inference_mode()
    def embed_images(self, images: Tensor, blocks: Sequence[int], *, value_attention: bool) -> ImageTokens:
        """Unit vectors of images and their patches, in one pass.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1] at :attr:`image_size`.
            blocks: Which blocks' patch tokens.
            value_attention: Take them by attention of the values among themselves.

        Returns:
            The vectors.

        Raises:
            ConfigError: There is no such block.
        """
        clip: Any = self.clip
        visual = clip.visual
        wrong = [block for block in blocks if not -self.num_blocks <= block < self.num_blocks]
        if wrong:
            raise ConfigError(f"blocks: the image transformer has {self.num_blocks} blocks, got {wrong[0]}")
        seen: dict[int, Tensor] = {}
        chosen = [block % self.num_blocks for block in blocks]

        def remember(index: int) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                seen[index] = inputs[0] if value_attention else output

            return hook

        handles = [visual.transformer.resblocks[i].register_forward_hook(remember(i)) for i in set(chosen)]
        try:
            image = clip.encode_image((images - self.mean) / self.std, normalize=True)
        finally:
            for handle in handles:
                handle.remove()
        patches = []
        for index in chosen:
            tokens = seen[index]
            if value_attention:
                tokens = _attend_values(visual.transformer.resblocks[index], tokens)
            projected = visual.ln_post(tokens[:, 1:]) @ visual.proj
            patches.append(F.normalize(projected, dim=-1).view(len(images), *visual.grid_size, -1))
        return ImageTokens(image=image, patches=torch.stack(patches))


def _attend_values(block: Any, tokens: Tensor) -> Tensor:
    """``x + out(softmax(v v' / sqrt(d)) v)`` with ``v`` of the normed tokens: CLIP Surgery's new path, one block long.

    Args:
        block: A residual attention block of open_clip.
        tokens: ``(B, N, W)`` its input.

    Returns:
        ``(B, N, W)``.
    """
    attention: nn.MultiheadAttention = block.attn
    weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
    batch, number, width = tokens.shape
    values = F.linear(block.ln_1(tokens), weight, bias).view(batch, number, attention.num_heads, -1).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(values, values, values)
    attended: Tensor = tokens + block.ls_1(attention.out_proj(mixed.transpose(1, 2).reshape(batch, number, width)))
    return attended


def build_clip(model: str) -> ClipEncoder:
    """A CLIP with random weights.

    Args:
        model: A name that open_clip knows, or the path of a ``.json`` file with such a configuration.

    Returns:
        The encoder, on the CPU.

    Raises:
        ConfigError: open_clip is not installed, or has no such model.
        WeightsError: The model is of a kind that has no patch tokens in the text's space.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise ConfigError("open_clip is not installed: it comes with the extra 'clip', pip install 'stlm[clip]'")
    import open_clip
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    if model.endswith(".json"):
        try:
            settings = json.loads(Path(model).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"CLIP configuration {model}: {error}") from error
    else:
        settings = open_clip.get_model_config(model)
    if not isinstance(settings, dict):
        raise ConfigError(f"CLIP model {model!r} is unknown, expected one of open_clip's, such as {_near(model)}")
    text = settings.get("text_cfg", {})
    if "hf_tokenizer_name" in text or "hf_model_name" in text or settings.get("custom_text"):
        raise WeightsError(f"CLIP model {model}: expected CLIP's own text tower and tokenizer, got another one")
    try:
        clip = CLIP(**settings)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"CLIP model {model}: no such configuration ({error})") from error
    tokenizer = SimpleTokenizer(context_length=clip.context_length)
    return ClipEncoder(clip=clip, tokenizer=tokenizer)


def _near(model: str) -> str:
    import difflib

    import open_clip

    return ", ".join(difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.0))


def load_clip(model: str, checkpoint: str, sha256: str, cache_dir: Path) -> ClipEncoder:
    """A CLIP from a checkpoint in open_clip's layout.

    Args:
        model: As for :func:`build_clip`; OpenAI's weights want a name that ends in ``-quickgelu``.
        checkpoint: Path or URL; safetensors or a torch file with tensors only.
        sha256: Digest it must have.
        cache_dir: Where downloads are kept.

    Returns:
        The encoder, on the CPU.

    Raises:
        ConfigError: open_clip is not installed, or has no such model.
        WeightsError: The file is missing, altered, holds more than tensors, or is of another architecture.
    """
    encoder = build_clip(model)
    path = download_checkpoint(checkpoint, sha256, cache_dir)
    state = read_state(path)
    try:
        encoder.clip.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise WeightsError(f"checkpoint {path} is not a {model}: {reason[:300]}") from error
    return encoder
