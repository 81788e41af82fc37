"""Frozen vision transformers: their features against a plain implementation, what files they take, and mistakes."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dinov3 import hollow, official_shapes, patch_tokens, periods, plain_shapes, random_state
from safetensors.torch import save_file
from torch.nn import functional as F

from uhd.distill.backbones import load_backbone
from uhd.distill.vit_files import read_vit

ROOT = Path(__file__).parents[1]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
GRIDS = [(4, 4), (6, 4), (3, 7)]
S, B, T = official_shapes(384), official_shapes(768), official_shapes(192)
P = plain_shapes(192, 14)
PATCHES = "patch_embed.proj.weight"
BARE = ("storage_tokens", "gamma", "bias_mask", "mask_token", "norm.weight", "norm.bias")
"""What a vit_tiny with RoPE may be without, the last norm included."""


def save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def without(state, *parts):
    """A state without the entries of these names and those whose names end in one that has no dot."""
    ends = tuple(part for part in parts if "." not in part)
    return {name: value for name, value in state.items() if name not in parts and not (ends and name.endswith(ends))}


def expected(state, images, grid, eps=1e-5, norm="imagenet"):
    """The reference's features, of images that are stretched first and normalised then."""
    x = F.interpolate(images, (16 * grid[0], 16 * grid[1]), mode="bilinear")
    return patch_tokens(state, (x - MEAN) / DEVIATION if norm == "imagenet" else x, eps)


def pictures(count=2, height=32, width=32, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def sockets():
    """The events of sockets meanwhile; Python has no way to take a hook away, so it falls silent."""
    seen, listening = [], True
    sys.addaudithook(lambda event, _: seen.append(event) if listening and event.startswith("socket.") else None)
    try:
        yield seen
    finally:
        listening = False


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Weights of S/16 as the release has them, the teacher of their file, and the sockets used for it."""
    state = random_state(official_shapes(384))
    path = save(state, tmp_path_factory.mktemp("s16") / "dinov3_vits16_pretrain.pth")
    with sockets() as seen:
        teacher = load_backbone(path, "dinov3_vits16", "imagenet")
    return state, teacher, seen


@pytest.fixture(scope="module")
def tiny_state():
    """Weights of the official names in ViT-Tiny's width."""
    return random_state(official_shapes(192))


@pytest.fixture
def teach(tmp_path):
    """The teacher of a state in a file."""

    def load(state, name="vit.pth", arch="vit_tiny", norm="imagenet"):
        return load_backbone(save(state, tmp_path / name), arch, norm)

    return load


@pytest.mark.parametrize("grid", GRIDS)
def test_dinov3_features_are_those_of_the_definition(small, grid):
    state, teacher, _ = small
    images = pictures()
    features = teacher(images, grid)
    wanted = expected(state, images, grid)
    assert features.shape == (2, 384, *grid)
    torch.testing.assert_close(features, wanted, atol=1e-4, rtol=0)
    assert wanted.std() > 0.3


@pytest.mark.parametrize("grid", GRIDS)
def test_no_detail_of_the_definition_is_lost_in_the_tolerance(tiny_state, teach, grid):
    """Each part changed in the reference alone moves its output by more than what passes as equal."""
    images = pictures()
    features = teach(tiny_state)(images, grid)
    torch.testing.assert_close(features, expected(tiny_state, images, grid), atol=1e-4, rtol=0)
    changes = {
        "no mask of the key bias": without(tiny_state, "bias_mask"),
        "no storage tokens": without(tiny_state, "storage_tokens"),
        "no LayerScale": without(tiny_state, "gamma"),
        "no last norm": without(tiny_state, "norm.weight", "norm.bias"),
        "unrounded periods": without(tiny_state, "rope_embed.periods"),
        "periods of base 10000": {**tiny_state, "rope_embed.periods": periods(10_000.0)},
    }
    for change, state in changes.items():
        assert (features - expected(state, images, grid)).abs().max() > 5e-4, change
    assert (features - expected(tiny_state, images.transpose(2, 3), grid)).abs().max() > 1e-3


def test_masked_key_bias_has_no_effect(tiny_state, teach):
    other = {
        name: value + 5 * (1 - tiny_state[f"{name}_mask"]) if name.endswith("qkv.bias") else value
        for name, value in tiny_state.items()
    }
    assert not torch.equal(other["blocks.0.attn.qkv.bias"], tiny_state["blocks.0.attn.qkv.bias"])
    assert torch.equal(teach(other)(pictures(), (4, 4)), teach(tiny_state)(pictures(), (4, 4)))


@pytest.mark.parametrize(
    "left_out",
    [(), ("bias_mask",), ("rope_embed.periods",), ("gamma",), ("norm.weight", "norm.bias"), ("mask_token",)],
    ids=lambda parts: "-".join(parts) or "all",
)
def test_tiny_with_rope_is_what_its_entries_say(tiny_state, teach, left_out):
    state = without(tiny_state, *left_out)
    torch.testing.assert_close(
        teach(state)(pictures(), (6, 4)), expected(state, pictures(), (6, 4)), atol=3e-4, rtol=1e-4
    )


@pytest.mark.parametrize("biased", [True, False])
def test_bare_tiny_with_rope(tiny_state, teach, biased):
    """Without storage tokens it is a plain ViT with RoPE, whose norms are those of plain ViTs."""
    state = without(tiny_state, *BARE)
    if not biased:
        state = {name: value for name, value in state.items() if not name.endswith("qkv.bias")}
    torch.testing.assert_close(
        teach(state)(pictures(), (4, 4)), expected(state, pictures(), (4, 4), eps=1e-6), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "distilled"])
@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (6, 4)])
def test_tiny_with_position_embeddings(teach, distilled, grid):
    state = random_state(plain_shapes(192, 4, distilled=distilled))
    features = teach(state)(pictures(), grid)
    torch.testing.assert_close(features, expected(state, pictures(), grid, eps=1e-6), atol=1e-4, rtol=0)


def test_position_embeddings_of_another_size(teach):
    state = random_state(plain_shapes(192, 14))
    features = teach(state)(pictures(), (4, 4))
    torch.testing.assert_close(features, expected(state, pictures(), (4, 4), eps=1e-6), atol=1e-4, rtol=0)


WRAPPINGS = {
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "config": {"a": 1}},
    "model in state_dict": lambda state: {"state_dict": {"model": state}},
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "backbone. beside others": lambda state: {
        **{f"backbone.{name}": value for name, value in state.items()},
        "neck.weight": torch.zeros(3),
        "cls_token": torch.zeros(3),
    },
    "model.module.backbone.": lambda state: {
        "model": {f"module.backbone.{name}": value for name, value in state.items()}
    },
    "counters": lambda state: {**state, "step": 3},
    "head": lambda state: {**state, "head.weight": torch.zeros(2, 192), "local_cls_norm.weight": torch.zeros(192)},
    "bfloat16": lambda state: {name: value.bfloat16() for name, value in state.items()},
    "rope.periods": lambda state: {name.replace("rope_embed", "rope"): value for name, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_may_be_around_the_weights(wrapping, tmp_path):
    """Each entry is all of one value, its own."""
    state = {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(T.items())}
    found = read_vit(save(WRAPPINGS[wrapping](state), tmp_path / "wrapped.pt"), "vit_tiny")
    assert found.keys() == T.keys() - {"mask_token"}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_safetensors(tiny_state, teach):
    """Its entries come in the order of their names, block 10 before block 2."""
    unmasked = without(tiny_state, "bias_mask")
    assert torch.equal(teach(unmasked, "vit.safetensors")(pictures(), (4, 4)), teach(unmasked)(pictures(), (4, 4)))


@pytest.mark.parametrize("biased", [True, False])
def test_files_of_timm(tiny_state, teach, biased):
    """timm's own conversion of a release, which is what it distributes, gives the same features but for the periods."""
    import timm
    from timm.models.eva import checkpoint_filter_fn

    state = without(tiny_state, "rope_embed.periods")
    if not biased:
        state = {name: value * (not name.endswith("qkv.bias")) for name, value in state.items()}
    vit = timm.create_model(
        f"vit_small_patch16_dinov3{'_qkvb' if biased else ''}", embed_dim=192, num_heads=3, num_classes=0
    )
    vit.load_state_dict(checkpoint_filter_fn(dict(state), vit))
    teacher = teach({name: value.clone() for name, value in vit.state_dict().items()}, "timm.safetensors")
    assert ("blocks.0.attn.q_bias" in vit.state_dict()) == biased
    assert torch.equal(teacher(pictures(), (4, 4)), teach(state)(pictures(), (4, 4)))


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [((64, 64), 8, (8, 8)), ((64, 64), 16, (4, 4)), ((96, 64), 8, (12, 8)), ((96, 64), 16, (6, 4))],
)
def test_grid_is_that_of_the_student(small, size, stride, grid):
    images = pictures(1, *size)
    features = small[1](images, (size[0] // stride, size[1] // stride))
    assert features.shape == (1, small[1].width, *grid) == (1, 384, *grid)
    if stride == 16:  # nothing is stretched
        torch.testing.assert_close(features, patch_tokens(small[0], (images - MEAN) / DEVIATION), atol=1e-4, rtol=0)


def test_image_that_is_larger_than_wanted_is_smoothed(tiny_state, teach):
    images = pictures(1, 64, 64)
    shrunk = F.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    teacher = teach(tiny_state)
    torch.testing.assert_close(teacher(images, (2, 2)), teacher(shrunk, (2, 2)), atol=1e-4, rtol=0)


def test_images_may_stay_as_they_are(tiny_state, teach):
    features = teach(tiny_state, norm="none")(pictures(), (4, 4))
    torch.testing.assert_close(features, expected(tiny_state, pictures(), (4, 4), norm="none"), atol=1e-4, rtol=0)


def test_teacher_is_frozen(small):
    teacher = small[1]
    holder = torch.nn.Sequential(teacher).train()
    assert holder.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    images = pictures().requires_grad_()
    features = teacher(images, (4, 4))
    assert not features.requires_grad
    scale = torch.ones((), requires_grad=True)
    (features * scale).square().mean().backward()  # a student's loss may keep them
    assert scale.grad.isfinite()


def test_features_are_the_same_every_time(small):
    assert torch.equal(small[1](pictures(), (4, 4)), small[1](pictures(), (4, 4)))


def test_each_image_is_seen_alone(small):
    both = small[1](pictures(), (4, 4))
    torch.testing.assert_close(small[1](pictures()[1:], (4, 4)), both[1:], atol=1e-4, rtol=0)


def test_nothing_is_drawn(tiny_state, teach):
    """A run has the same random numbers with and without a teacher."""
    before = torch.get_rng_state()
    teach(tiny_state)(pictures(), (4, 4))
    teach(random_state(plain_shapes(192, 4)))
    assert torch.equal(torch.get_rng_state(), before)


def counted(width):
    """Parameters of a ViT of 12 blocks, by hand: patches, class and storage tokens, blocks, the last norm."""
    patches = 16 * 16 * 3 * width + width
    attention = 3 * width * width + 2 * width + width * width + width  # queries and values have biases, keys none
    mlp = width * 4 * width + 4 * width + 4 * width * width + width
    norms_and_scales = 2 * 2 * width + 2 * width
    return patches + 5 * width + 12 * (attention + mlp + norms_and_scales) + 2 * width


def test_size_of_s16(small):
    released = sum(value.numel() for name, value in small[0].items() if "periods" not in name and "mask" not in name)
    assert released + 384 == 21_601_152  # with its mask token
    assert sum(parameter.numel() for parameter in small[1].parameters()) == counted(384) == 21_596_160
    assert released - counted(384) == 12 * 384  # the biases of the keys, which are no parameters here


def test_b16(teach):
    """The whole network from a file of all its entries, each of one value."""
    teacher = teach(hollow(official_shapes(768)), arch="dinov3_vitb16")
    assert sum(parameter.numel() for parameter in teacher.parameters()) == counted(768) == 85_659_648
    assert (teacher.width, len(teacher.vit.blocks), teacher.vit.blocks[0].attn.num_heads) == (768, 12, 12)
    assert {buffer.device.type for buffer in (*teacher.buffers(), *teacher.parameters())} == {"cpu"}


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return print, ("ran",)


MISTAKES = {
    "text": ("vit_tiny", b"not weights\n", "cannot be read"),
    "empty": ("vit_tiny", b"", "cannot be read"),
    "code": ("vit_tiny", Bomb(), "expected tensors and plain values only"),
    "list": ("vit_tiny", [torch.zeros(3)], "not a state dict of tensors"),
    "numbers": ("vit_tiny", {"a": 1}, "not a state dict of tensors"),
    "empty model": ("vit_tiny", {"model": {}}, "not a state dict of tensors"),
    "no ViT": ("vit_tiny", {"conv.weight": torch.zeros(3)}, f"holds no {PATCHES}; expected one vision transformer"),
    "two ViTs": (
        "vit_tiny",
        {f"{who}.{PATCHES}": torch.zeros(3) for who in ("student", "teacher")},
        f"holds 2 entries of {PATCHES}; expected one",
    ),
    "B for S": (
        "dinov3_vits16",
        hollow(B),
        f"{PATCHES} is [768, 3, 16, 16], a ViT of width 768; expected [384, 3, 16, 16] for dinov3_vits16 "
        "(dinov3_vitb16 fits)",
    ),
    "tiny for S": ("dinov3_vits16", hollow(T), "expected [384, 3, 16, 16] for dinov3_vits16 (vit_tiny fits)"),
    "plain tiny for B": ("dinov3_vitb16", hollow(P), "a ViT of width 192; expected [768, 3, 16, 16] for dinov3_vitb16"),
    "S for tiny": ("vit_tiny", hollow(S), "expected [192, 3, 16, 16] for vit_tiny (dinov3_vits16 fits)"),
    "L for B": (
        "dinov3_vitb16",
        hollow(official_shapes(1024, depth=12)),
        "expected [768, 3, 16, 16] for dinov3_vitb16",
    ),
    "patches of 14": (
        "dinov3_vits16",
        hollow({**S, PATCHES: (384, 3, 14, 14)}),
        f"{PATCHES} is [384, 3, 14, 14]; expected [384, 3, 16, 16] for dinov3_vits16",
    ),
    "10 blocks": ("dinov3_vits16", hollow(official_shapes(384, depth=10)), "holds no blocks.10.norm1.weight"),
    "13 blocks": (
        "dinov3_vits16",
        hollow(official_shapes(384, depth=13)),
        "holds blocks.12.norm1.weight; expected none for dinov3_vits16",
    ),
    "no storage": (
        "dinov3_vits16",
        without(hollow(S), "storage_tokens"),
        "holds no storage_tokens; expected [1, 4",
    ),
    "8 storage": (
        "vit_tiny",
        hollow(official_shapes(192, storage=8)),
        "storage_tokens is [1, 8, 192]; expected [1, 4, 192] for vit_tiny",
    ),
    "no scale": ("dinov3_vits16", without(hollow(S), "gamma"), "holds no blocks.0.ls1.gamma"),
    "one mask": (
        "dinov3_vits16",
        {name: value for name, value in hollow(S).items() if name != "blocks.7.attn.qkv.bias_mask"},
        "holds no blocks.7.attn.qkv.bias_mask; expected [1152] for dinov3_vits16",
    ),
    "norm of queries": (
        "vit_tiny",
        hollow({**T, "blocks.0.attn.q_norm.weight": (64,)}),
        "holds blocks.0.attn.q_norm.weight; expected none for vit_tiny",
    ),
    "both kinds of place": (
        "vit_tiny",
        hollow({**P, "rope_embed.periods": (16,)}),
        "holds rope_embed.periods; expected none",
    ),
    "no square": (
        "vit_tiny",
        hollow({**P, "pos_embed": (1, 200, 192)}),
        "pos_embed is [1, 200, 192]; expected [1, 197",
    ),
    "not finite": (
        "vit_tiny",
        {**hollow(T), "blocks.3.attn.qkv.bias_mask": torch.full((576,), torch.nan)},
        "blocks.3.attn.qkv.bias_mask holds values that are not finite",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, tmp_path):
    arch, content, message = MISTAKES[mistake]
    path = tmp_path / "vit.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    refused(path, arch, message)


def test_no_file(tmp_path, tiny_state):
    refused(tmp_path / "vit.pt", "vit_tiny", "no such file")
    refused(tmp_path, "vit_tiny", "a folder; expected a file")
    whole = save(tiny_state, tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "half.pt", "vit_tiny", "cannot be read")
    (tmp_path / "half.safetensors").write_bytes(whole[:1000])
    refused(tmp_path / "half.safetensors", "vit_tiny", "cannot be read")


def refused(path, arch, message):
    with pytest.raises(ValueError, match=r"^--teacher-backbone") as caught:
        load_backbone(path, arch)
    text = str(caught.value)
    assert text.startswith(f"--teacher-backbone {path}: {message}") or message in text
    assert "\n" not in text
    assert len(text) < 300 + len(str(path))


PROGRAM = """
import sys
from uhd.distill.backbones import load_backbone
try:
    load_backbone("nothing.pth", "vit_tiny")
except ValueError as error:
    print(error)
print({"timm", "safetensors"} & set(sys.modules))
"""


def test_timm_is_imported_when_a_file_was_read(tmp_path):
    """In a process of its own, because this one has imported it; it takes seconds."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["--teacher-backbone nothing.pth: no such file", "set()"]


def test_no_connection_is_made(small, tiny_state, teach):
    """Nor was one made for the first teacher of this file, when timm was imported."""
    with sockets() as seen:
        teach(tiny_state)(pictures(), (4, 4))
        teach(random_state(P))
    assert (small[2], seen) == ([], [])
