"""Rows end to end, and log-probs without whole logits: the same numbers, where the architecture allows it."""

import pytest
import torch

from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.fast_paths import Shortcuts, find_shortcuts
from llm_forget.logprobs.logprobs import decoder_layers, forward_logprobs
from llm_forget.models.adapters.lora import attach_adapter, prepare_gradient_checkpointing
from llm_forget.models.load import load_base
from tests.models.test_architectures import folder  # noqa: F401

# Its attention caps scores, which SDPA cannot; it caps logits too.
NEITHER = ("Gemma2",)
# Three answers to one question, one of them the beginning of another, and a row apart; longer than a sliding window.
QUESTION = [5, 6, 7, 8, 9, 10, 11]
ROWS = [[*QUESTION, 20, 21, 22, 23], [*QUESTION, 20, 21], [*QUESTION, 30, 31, 32], [5, 40, 41]]


def batch(rows=ROWS, prompt=2):
    """Rows with the first ``prompt`` tokens for a prompt: targets within what rows have in common, too."""
    return collate([{"input_ids": row, "labels": [-100] * prompt + row[prompt:]} for row in rows], 0)


@pytest.fixture
def model(folder, lora_args):  # noqa: F811
    """With an adapter that does something."""
    args = lora_args(folder)
    made = attach_adapter(load_base(args), args)
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    return made.eval()


def gradients(model, **how):
    """Log-probs of both rows and the gradients of a sum in which every token weighs differently."""
    model.zero_grad()
    found = forward_logprobs(model, batch(), head=model.get_output_embeddings(), **how)
    weights = torch.arange(found.values.numel()).view_as(found.values) / 7
    (found.values * weights).sum().backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_every_architecture_gives_the_same_log_probs_and_gradients_by_every_shortcut(model, request) -> None:
    name = request.node.callspec.params["folder"]
    allowed = find_shortcuts(model, model)
    assert allowed == (Shortcuts() if name in NEITHER else Shortcuts(packed=True, shared=True, fused=True))
    plain, expected = gradients(model)
    for how in (
        {"packed": allowed.packed},
        {"packed": allowed.packed, "shared": allowed.shared},
        {"fused": allowed.fused},
        vars(allowed),
    ):
        found, grads = gradients(model, **how)
        assert torch.allclose(found.values, plain.values, atol=1e-5), how
        assert torch.equal(found.mask, plain.mask)
        assert torch.equal(found.labels, plain.labels)
        largest = max(float(g.abs().max()) for g in expected.values())
        assert grads.keys() == expected.keys()
        assert largest > 0
        assert max(float((grads[k] - expected[k]).abs().max()) for k in grads) < 1e-5 * largest, how


@pytest.mark.slow
def test_logits_and_hidden_states_of_packed_rows_are_those_of_padded_rows(model) -> None:
    allowed = find_shortcuts(model, model)
    head, layer = model.get_output_embeddings(), decoder_layers(model, 2)[0]
    plain, packed = (
        forward_logprobs(model, batch(), head=head, logits=True, hidden=layer, **how) for how in ({}, vars(allowed))
    )
    assert torch.allclose(plain.logits, packed.logits, atol=1e-5)
    assert torch.allclose(plain.hidden, packed.hidden, atol=1e-5)


@pytest.mark.slow
def test_a_row_does_not_feel_its_neighbours(model) -> None:
    """Another first row, same length: the second row's numbers stay."""
    how = vars(find_shortcuts(model, model))
    head, given = model.get_output_embeddings(), batch()
    before = forward_logprobs(model, given, head=head, **how).values[1]
    given["input_ids"][0] = given["input_ids"][0].flip(0)  # the longest row: no padding
    after = forward_logprobs(model, given, head=head, **how).values
    assert torch.allclose(before, after[1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["Llama", "Mistral"], indirect=True)
def test_gradient_checkpointing_runs_packed_layers_again_as_packed(folder, lora_args) -> None:  # noqa: F811
    args = lora_args(folder)
    grads = []
    for checkpointing in (False, True):
        base = load_base(args)
        if checkpointing:
            prepare_gradient_checkpointing(base)
        torch.manual_seed(2)
        made = attach_adapter(base, args).train()
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.1)
        assert find_shortcuts(made, made).packed
        grads.append(gradients(made, packed=True, shared=True, fused=True)[1])
    assert all(torch.allclose(grads[0][k], grads[1][k], atol=1e-6) for k in grads[0])


@pytest.mark.slow
def test_a_model_that_looks_across_rows_is_not_packed(folder, lora_args, monkeypatch) -> None:  # noqa: F811
    """If the layout were not understood, rows would run into each other: seen, and not used."""
    from llm_forget.logprobs import packed_attention

    def across(module, query, key, value, mask, **how):
        return inner(module, query, key, value, None, **how)

    inner = packed_attention._by_row("sdpa")
    monkeypatch.setattr(packed_attention, "_by_row", lambda name: across)
    model = load_base(lora_args(folder))
    for parameter in model.parameters():
        parameter.data *= 1.5
    found = find_shortcuts(model, model)
    monkeypatch.undo()
    if model.config._attn_implementation.startswith(packed_attention.PREFIX):
        # Registered by name for the whole process: put the right one back.
        model.config._attn_implementation = "sdpa"
        packed_attention.attend_by_row(model)
    assert not found.packed


@pytest.mark.parametrize("name", ["Phimoe", "Llama4", "Doge"])
def test_what_the_layout_cannot_say_to_an_architecture_is_done_the_plain_way(name) -> None:
    """Windows and chunks that stand in the mask alone, longer than the trial's rows; a forward pass that fails."""
    import transformers

    own = {
        "Phimoe": {"sliding_window": 20, "num_local_experts": 2},
        "Llama4": {"attention_chunk_size": 20, "num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8},
        "Doge": {},
    }
    config = getattr(transformers, f"{name}TextConfig" if name == "Llama4" else f"{name}Config")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = getattr(transformers, f"{name}ForCausalLM")(config(**sizes, **heads, **tokens, **own[name])).eval()
    allowed = find_shortcuts(made, made)
    assert not allowed.packed
    rows = batch([[5 + i % 50 for i in range(start, start + 40)] for start in (0, 3)])
    head = made.get_output_embeddings()
    plain, found = (forward_logprobs(made, rows, head=head, **how) for how in ({}, vars(allowed)))
    assert torch.allclose(found.values, plain.values, atol=1e-5)


@pytest.mark.slow
def test_parts_of_a_batch_keep_logits_only_where_asked_and_nothing_else_changes(model) -> None:
    from llm_forget.logprobs.logprobs import forward_parts

    how = vars(find_shortcuts(model, model))
    head = model.get_output_embeddings()
    whole = forward_logprobs(model, batch(), head=head, logits=True)
    for kept in ([], ["first"], ["second"], ["first", "second"]):
        parts = forward_parts(model, batch(), {"first": 1, "second": 3}, head=head, logits=kept, **how)
        for (name, part), rows in zip(parts.items(), (slice(0, 1), slice(1, 4)), strict=True):
            width = part.mask.shape[1]
            assert torch.equal(part.mask, whole.mask[rows, :width])
            assert torch.allclose(part.values, whole.values[rows, :width], atol=1e-5)
            assert (part.logits is not None) == (name in kept)
            if part.logits is not None:
                assert torch.allclose(part.logits, whole.logits[rows, :width], atol=1e-5)
