"""Adapters against PEFT itself on transformers' ESM: what one side trained, the other must compute alike."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import biometro
from biometro.alphabet import PROTEIN
from biometro.errors import UserError
from biometro.model import adapters
from biometro.model.adapters import LoraConfig
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import TokenHead, TokenHeadConfig
from biometro.model.linear import Linear
from conftest import packed_of, random_sequences

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
SEQUENCES = random_sequences([1, 7, 33, 33, 50, 2])
EVERY = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def esm(width: int = 32, depth: int = 3, kind: str = "EsmModel") -> Any:
    """transformers' ESM-2 of random weights, large enough that every layer matters."""
    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=4, intermediate_size=2 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=1026, position_embedding_type="rotary", token_dropout=True, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "esm"
    esm().save_pretrained(path)
    return path


def plain(base: Path, adapter: Path | None = None) -> Any:
    """The base in transformers, with an adapter by PEFT."""
    model = transformers.EsmModel.from_pretrained(base)
    return model.eval() if adapter is None else peft.PeftModel.from_pretrained(model, adapter).eval()


def ours(base: Path) -> Encoder:
    return biometro.load(base).encoder


def theirs_hidden(model: Any) -> Tensor:
    """(T, D) of the real tokens."""
    longest = max(map(len, SEQUENCES)) + 2
    tokens = torch.ones(len(SEQUENCES), longest, dtype=torch.long)
    for row, sequence in zip(tokens, SEQUENCES, strict=True):
        row[: len(sequence) + 2] = torch.tensor([0, *sequence.tolist(), 2])
    output = model(input_ids=tokens, attention_mask=(tokens != 1).long(), output_hidden_states=True)
    return output.hidden_states[-1][tokens != 1]


def our_hidden(encoder: nn.Module) -> Tensor:
    out: Tensor = encoder(packed_of(SEQUENCES))
    return out


def train(model: nn.Module, hidden: Callable[[Any], Tensor], steps: int = 4) -> None:
    """A few steps towards fixed random targets, from random A and B, so that every one of them matters."""
    learning = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in learning:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    optimizer = torch.optim.Adam(learning, lr=0.01)
    for _ in range(steps):
        found = hidden(model)
        loss = (found - torch.randn(found.shape, generator=torch.Generator().manual_seed(8))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)


def train_theirs(base: Path, folder: Path, kind: str = "EsmModel", **settings: Any) -> Tensor:
    """An adapter by plain PEFT, saved by plain PEFT; its hidden states."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": EVERY, **settings})
    torch.manual_seed(1)
    model = peft.get_peft_model(getattr(transformers, kind).from_pretrained(base), config)
    train(model, theirs_hidden)
    model.save_pretrained(folder)
    with torch.no_grad():
        return theirs_hidden(model.eval())


def new_ours(base: Path, config: LoraConfig, name: str = "default", steps: int = 4) -> Encoder:
    encoder = ours(base).train()
    adapters.add(encoder, config, name)
    train(encoder, our_hidden, steps)
    return encoder.eval()


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["query", "value"]},
        {"target_modules": ["key"], "r": 1},
        {"target_modules": ["query", "key", "value", "attention.output.dense"], "use_rslora": True},
        {"target_modules": ["intermediate.dense"], "layers_to_transform": [0, 2]},
        {"target_modules": ["dense", "key"], "exclude_modules": ["pooler.dense", "attention.output.dense"]},
        {"target_modules": r".*\.(query|value)"},
        {"rank_pattern": {"query": 7, r"1\.output\.dense": 2}, "alpha_pattern": {"value": 33, "1.output.dense": 1}},
        {"rank_pattern": {"key": 2}, "use_rslora": True, "init_lora_weights": "gaussian"},
    ],
)  # fmt: skip
def test_an_adapter_of_peft_gives_the_same_vectors_here(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    expected = train_theirs(base, tmp_path, **settings)
    encoder = ours(base)
    before = our_hidden(encoder)
    adapter = adapters.load(encoder, tmp_path)
    assert adapter.base == str(base)
    with torch.no_grad():
        close(our_hidden(encoder), expected)
    assert (expected - before).abs().max() > 0.1
    assert not any(p.requires_grad for p in encoder.parameters())


def test_an_adapter_of_a_model_with_a_head_is_read_where_it_concerns_the_encoder(tmp_path: Path) -> None:
    esm(kind="EsmForMaskedLM").save_pretrained(tmp_path / "base")
    expected = train_theirs(tmp_path / "base", tmp_path / "lora", "EsmForMaskedLM")
    encoder = ours(tmp_path / "base")
    adapters.load(encoder, tmp_path / "lora")
    with torch.no_grad():
        close(our_hidden(encoder), expected)


def test_layers_that_never_learned_are_left_out_and_others_refused(base: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["dense", "query"])  # with the pooler, which no loss of ours needs
    model = peft.get_peft_model(plain(base), config)
    model.save_pretrained(tmp_path)
    assert any("pooler" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    encoder = ours(base)
    adapters.load(encoder, tmp_path)
    assert len(adapters.adapted(encoder)) == 12
    with torch.no_grad():
        model.base_model.model.pooler.dense.lora_B["default"].weight.fill_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"pooler\.dense, which is not here"):
        adapters.load(ours(base), tmp_path)


@pytest.mark.parametrize("on", ["attention", "feed_forward", "all"])
def test_an_adapter_of_ours_gives_the_same_vectors_in_plain_peft(base: Path, tmp_path: Path, on: Any) -> None:
    encoder = new_ours(base, LoraConfig(rank=3, alpha=7, layers=on))
    adapters.save(encoder, tmp_path, base=str(base), names="huggingface")
    with torch.no_grad():
        expected = our_hidden(encoder)
        close(theirs_hidden(plain(base, tmp_path)), expected)
        assert (expected - our_hidden(ours(base))).abs().max() > 0.1
        again = ours(base)
        found = adapters.load(again, tmp_path)
        assert torch.equal(our_hidden(again), expected)
    assert (found.rank, found.alpha, found.dropout) == (3, 7.0, 0.1)
    (tmp_path / "again").mkdir()
    adapters.save(again, tmp_path / "again", base=str(base), names="huggingface")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("on", ["attention", "feed_forward", "all"])
def test_under_our_names_plain_peft_loads_it_onto_our_encoder(base: Path, tmp_path: Path, on: Any) -> None:
    encoder = new_ours(base, LoraConfig(layers=on))
    adapters.save(encoder, tmp_path, base="family/model", names="ours")
    by_peft = peft.PeftModel.from_pretrained(ours(base), tmp_path).eval()
    again = ours(base)
    assert adapters.load(again, tmp_path).base == "family/model"
    with torch.no_grad():
        assert torch.equal(our_hidden(by_peft), our_hidden(encoder))
        assert torch.equal(our_hidden(again), our_hidden(encoder))


def test_an_adapter_from_elsewhere_goes_back_with_the_same_vectors(base: Path, tmp_path: Path) -> None:
    settings = {"rank_pattern": {"query": 7}, "alpha_pattern": {"value": 33}, "target_modules": ["query", "value"]}
    expected = train_theirs(base, tmp_path, **settings)
    encoder = ours(base)
    adapters.load(encoder, tmp_path)
    for names in ("ours", "huggingface"):
        (tmp_path / names).mkdir()
        adapters.save(encoder, tmp_path / names, base=str(base), names=names)  # type: ignore[arg-type]
    with torch.no_grad():
        close(theirs_hidden(plain(base, tmp_path / "huggingface")), expected)
        again = ours(base)
        adapters.load(again, tmp_path / "ours")
        close(our_hidden(again), expected)


def test_at_the_start_outputs_are_those_of_the_base_and_only_adapters_learn(base: Path) -> None:
    states = []
    for _ in range(2):
        encoder = ours(base).train()
        torch.manual_seed(5)
        adapters.add(encoder, LoraConfig(dropout=0.5))
        assert torch.equal(our_hidden(encoder), our_hidden(ours(base)))
        learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
        assert learning == {name for name, _ in encoder.named_parameters() if "lora_" in name}
        assert len(learning) == 3 * 4 * 2
        states.append(encoder.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert sum(t.numel() for n, t in states[0].items() if "lora_A" in n) == 3 * 8 * (32 + 32 + 32 + 64)


def test_dropout_is_off_in_a_model_that_is_not_training(base: Path, tmp_path: Path) -> None:
    adapters.save(new_ours(base, LoraConfig(dropout=0.5)), tmp_path, base="b", names="ours")
    encoder = ours(base)
    adapters.load(encoder, tmp_path)
    assert torch.equal(our_hidden(encoder), our_hidden(encoder))
    encoder.train()
    assert not torch.equal(our_hidden(encoder), our_hidden(encoder))


def test_loading_draws_no_random_numbers(base: Path, tmp_path: Path) -> None:
    adapters.save(new_ours(base, LoraConfig()), tmp_path, base="b", names="huggingface")
    encoder = ours(base)
    torch.manual_seed(3)
    adapters.load(encoder, tmp_path)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


def weights_with(base: Path, folders: list[Path]) -> Any:
    """The base in transformers with the updates of adapters added to its weights by hand."""
    model = plain(base)
    with torch.no_grad():
        for folder in folders:
            scale = (c := json.loads((folder / "adapter_config.json").read_text()))["lora_alpha"] / c["r"]
            tensors = load_file(folder / "adapter_model.safetensors")
            for key, a in tensors.items():
                if ".lora_A." in key:
                    name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                    model.get_submodule(name).weight += scale * tensors[key.replace("lora_A", "lora_B")] @ a
    return model


def test_active_adapters_add_up_and_none_is_the_base(base: Path, tmp_path: Path) -> None:
    for name, settings in {"a": {"r": 2}, "b": {"r": 3, "target_modules": ["query", "output.dense"]}}.items():
        train_theirs(base, tmp_path / name, **settings)
    encoder = ours(base)
    state = copy.deepcopy(encoder.state_dict())
    with torch.no_grad():
        alone = our_hidden(encoder)
        adapters.load(encoder, tmp_path / "a", "a")
        adapters.load(encoder, tmp_path / "b", "b")
        close(our_hidden(encoder), theirs_hidden(plain(base, tmp_path / "b")))
        for chosen in (["a"], ["b"], ["a", "b"]):
            adapters.activate(encoder, chosen)
            expected = theirs_hidden(weights_with(base, [tmp_path / name for name in chosen]))
            close(our_hidden(encoder), expected, 2e-5)
            merged = copy.deepcopy(encoder)
            adapters.merge(merged)
            close(our_hidden(merged), expected, 2e-5)
        adapters.activate(encoder, [])
        assert torch.equal(our_hidden(encoder), alone)
        with pytest.raises(UserError, match="no adapter 'c' here, but: a, b"):
            adapters.activate(encoder, ["c"])
        with pytest.raises(UserError, match="'a' here already"):
            adapters.load(encoder, tmp_path / "b", "a")
    adapters.activate(encoder, ["a", "b"], train=["b"])
    learning = {name.split(".")[-2] for name, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {"b"}
    train(encoder, our_hidden)
    adapters.remove(encoder)
    assert state.keys() == encoder.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(type(m) is Linear for m in encoder.modules() if isinstance(m, nn.Linear))


def test_a_merged_encoder_is_an_ordinary_one(base: Path, tmp_path: Path) -> None:
    encoder = new_ours(base, LoraConfig())
    with torch.no_grad():
        expected = our_hidden(encoder)
    adapters.merge(encoder)
    assert all(type(m) is Linear for m in encoder.modules() if isinstance(m, nn.Linear))
    assert not adapters.adapted(encoder) and not hasattr(encoder, "peft_config")
    Bundle(PROTEIN, {"encoder": encoder}).save(tmp_path / "merged")
    with torch.no_grad():
        close(our_hidden(biometro.load(tmp_path / "merged").encoder), expected)
    adapters.add(encoder, LoraConfig())  # and may get another


def test_gradients_are_those_of_recomputed_blocks_and_of_bfloat16(base: Path) -> None:
    encoder = new_ours(base, LoraConfig(dropout=0.0)).train()

    def gradients() -> list[Tensor]:
        encoder.zero_grad()
        our_hidden(encoder).square().mean().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients()
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.98
    encoder.recompute_blocks()
    assert len(expected) == 24
    for a, b in zip(gradients(), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("on", ["attention", "all"])
def test_flops_count_the_products_of_adapters(base: Path, on: Any) -> None:
    encoder, packed = ours(base), packed_of(SEQUENCES)

    def products() -> int:
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            encoder(packed)
        return sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))

    before, counted = products(), encoder.flops(packed)
    adapters.add(encoder, LoraConfig(rank=5, layers=on))
    assert before > 0
    assert encoder.flops(packed) - counted == products() - before > 0


class Wrapper(nn.Module):
    """As an encoder that holds another library's."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


def t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config).eval()


@pytest.mark.parametrize(
    ("on", "layers"),
    [("attention", "qkvo"), ("feed_forward", ["wi", "wo"]), ("all", [*"qkvo", "wi", "wo"])],
)
def test_another_librarys_encoder_gets_adapters_by_the_names_of_its_layers(
    tmp_path: Path, on: Any, layers: list[str]
) -> None:
    wrapper = Wrapper(t5())
    tokens = torch.arange(2, 20)[None]
    adapters.add(wrapper, LoraConfig(rank=2, layers=on))
    found = {name.rpartition(".")[2] for name in adapters.adapted(wrapper)}
    assert found == set(layers) and len(adapters.adapted(wrapper)) == 2 * len(layers)
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
        expected = wrapper.model(input_ids=tokens).last_hidden_state
        adapters.save(wrapper, tmp_path, base="t5", names="huggingface")
        by_peft = peft.PeftModel.from_pretrained(t5(), tmp_path).eval()
        close(by_peft(input_ids=tokens).last_hidden_state, expected)
        again = Wrapper(t5())
        adapters.load(again, tmp_path)
        close(again.model(input_ids=tokens).last_hidden_state, expected)
        adapters.save(wrapper, tmp_path, base="t5", names="ours")
        third = Wrapper(t5())
        adapters.load(third, tmp_path)
        close(third.model(input_ids=tokens).last_hidden_state, expected)
        adapters.remove(third)
        assert torch.equal(third.model(input_ids=tokens).last_hidden_state, t5()(tokens).last_hidden_state)


def test_in_transformers_esm_the_poolers_and_contacts_stay_as_they_are() -> None:
    wrapper = Wrapper(esm())
    adapters.add(wrapper, LoraConfig())
    assert len(adapters.adapted(wrapper)) == 3 * 6
    adapters.remove(wrapper)
    adapters.add(wrapper, LoraConfig(layers="attention"))
    assert len(adapters.adapted(wrapper)) == 3 * 4


def test_a_head_gets_adapters_on_all_its_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = TokenHead(TokenHeadConfig(16, 3, dense=True))
    same = copy.deepcopy(head)
    adapters.add(head, LoraConfig(layers="head"))
    assert set(adapters.adapted(head)) == {"dense", "out"}
    h_TD = torch.randn(9, 16)
    train(head, lambda module: module(h_TD))
    adapters.save(head.eval(), tmp_path, base="b", names="ours")
    by_peft = peft.PeftModel.from_pretrained(copy.deepcopy(same), tmp_path).eval()
    adapters.load(same.eval(), tmp_path)
    with torch.no_grad():
        assert torch.equal(same(h_TD), head(h_TD)) and torch.equal(by_peft(h_TD), head(h_TD))
    with pytest.raises(ValueError, match="no linear layers"):
        adapters.add(nn.Linear(3, 3), LoraConfig())
    with pytest.raises(ValueError, match="no linear layers"):
        adapters.add(Encoder(EncoderConfig(width=32, depth=1, head_size=16)), LoraConfig(layers="head"))


@pytest.mark.parametrize(
    ("width", "depth", "reason"),
    [
        (32, 2, r"layer\.2\..* which is not here"),
        (32, 4, r"nothing for encoder\.layer\.3"),
        (48, 3, "48 inputs and 48 outputs here"),
    ],
)
def test_an_adapter_of_another_base_changes_nothing(
    base: Path, tmp_path: Path, width: int, depth: int, reason: str
) -> None:
    for name, settings in {"list": {}, "pattern": {"target_modules": ".*(query|dense)"}}.items():
        model = peft.get_peft_model(plain(base), peft.LoraConfig(r=2, **{"target_modules": EVERY, **settings}))
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.fill_(0.0 if "pooler" in n else 1.0)
        model.save_pretrained(tmp_path / name)
        config = EncoderConfig(width=width, depth=depth, head_size=8, ffn_width=2 * width)
        encoder = Encoder(config)
        with pytest.raises(UserError, match=reason) as error:
            adapters.load(encoder, tmp_path / name)
        assert str(base) in str(error.value) and f"{depth} layers and width {width}" in str(error.value)
        assert not adapters.adapted(encoder) and all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"of_tomorrow": {"x": 1}}, "of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": [1]}, "init_lora_weights"),
        ({"r": 0}, "r cannot be 0"),
        ({"r": True}, "r cannot be True"),
        ({"r": 4.0}, "r cannot be"),
        ({"r": 5}, "rank 4 in adapter_model.safetensors and 5"),
        ({"lora_alpha": 10**400}, "lora_alpha cannot be"),
        ({"lora_alpha": "8"}, "lora_alpha cannot be"),
        ({"lora_dropout": 1}, "lora_dropout"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": []}, "rank_pattern"),
        ({"rank_pattern": {"(a+)+$": 4}}, "regular expression"),
        ({"alpha_pattern": {"query": 0}}, "cannot be 0"),
        ({"target_modules": ["query"]}, "does not target"),
        ({"target_modules": [*EVERY, "pooler.dense"], "exclude_modules": ["key"]}, "does not target"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": {"a": 1}}, "target_modules"),
        ({"layers_to_transform": 1}, "does not target"),
        ({"layers_to_transform": ["a"]}, "layers_to_transform"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be_read_are_refused_by_name(
    base: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    a_folder(base, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=word):
        adapters.load(ours(base), tmp_path)


def a_folder(base: Path, folder: Path) -> None:
    peft.get_peft_model(plain(base), peft.LoraConfig(r=4, target_modules=EVERY)).save_pretrained(folder)


def test_damaged_and_hostile_folders_are_one_line(base: Path, tmp_path: Path) -> None:
    encoder = ours(base)

    def refused(word: str) -> None:
        with pytest.raises(UserError, match=word):
            adapters.load(encoder, tmp_path)
        assert not adapters.adapted(encoder)

    refused(r"no adapter_config\.json")
    a_folder(base, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    good, tensors = weights.read_bytes(), load_file(weights)
    key = "base_model.model.encoder.layer.1.attention.self.query.lora_A.weight"

    def rewritten(**changes: Tensor | None) -> None:
        save_file({name: value for name, value in {**tensors, **changes}.items() if value is not None}, weights)

    rewritten(**{key: None})
    refused("lacks the other")
    rewritten(**{key: None, key.replace("lora_A", "lora_B"): None})
    refused(r"nothing for encoder\.layer\.1\.attention\.self\.query")
    rewritten(**{key: torch.full((4, 32), torch.nan)})
    refused("no finite number")
    rewritten(**{key: torch.ones(4, 32, dtype=torch.int32)})
    refused("no finite number")
    rewritten(**{key: torch.ones(128)})
    refused("does not fit")
    rewritten(**{"base_model.model.encoder.layer.1.attention.self.query.weight": torch.ones(32, 32)})
    refused("no LoRA weight")
    rewritten(**{key.replace("layer", "../layer"): torch.ones(4, 32)})
    refused("lacks the other")
    save_file({}, weights)
    refused("no LoRA weights")
    weights.write_bytes(good[:-100])
    refused("damaged")
    weights.unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    refused(r"adapter_model\.bin is pickled, which is never read")
    (tmp_path / "elsewhere").write_bytes(good)
    weights.symlink_to("/etc/passwd")
    refused("link out of its folder")
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    refused("cannot be read")
    (tmp_path / "adapter_config.json").write_text("[]")
    refused("is not an adapter's configuration")
    with pytest.raises(UserError, match="no adapter's folder"):
        adapters.load(encoder, tmp_path / "adapter_config.json")


@pytest.mark.parametrize("name", ["", "a.b", "keys", "../x", "a b"])
def test_names_of_adapters_are_words(base: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be called"):
        adapters.add(ours(base), LoraConfig(), name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 2.0},
        {"rank": 10**9},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"dropout": 1},
        {"layers": "x"},
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"lora.{next(iter(wrong))}"):
        LoraConfig(**wrong)


def test_what_esm_cannot_express_is_not_saved_under_its_names(tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(width=32, depth=1, head_size=16, ffn="swiglu"))
    adapters.add(encoder, LoraConfig())
    with pytest.raises(UserError, match="swiglu"):
        adapters.save(encoder, tmp_path, base="b", names="huggingface")
    with pytest.raises(UserError, match="no adapter 'other'"):
        adapters.save(encoder, tmp_path, base="b", names="ours", adapter="other")
    adapters.save(encoder, tmp_path, base="b", names="ours")
    adapters.load(Encoder(encoder.config), tmp_path)


def test_the_room_is_imported_without_peft() -> None:
    code = "import sys, biometro.model.adapters; sys.exit(bool({'peft', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
