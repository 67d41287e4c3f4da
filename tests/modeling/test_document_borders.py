"""Where documents begin: what is understood, what is refused, the loss, isolation, compilation, and a cache."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from causal_cases import CONV, HYBRID, greedy
from frankenlm.modeling import FrankensteinForSequenceClassification
from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.mixers import MIXERS
from frankenlm.modeling.scan_delta import delta_scan_chunked
from frankenlm.modeling.scan_linear import linear_scan_chunked
from packed_rows import FORMS, LENGTHS, PADS, PackedRows, distance
from slot_memories import assert_same_state
from tiny_infinito import ATTENTION_SLOTS

every_mixer = pytest.mark.parametrize("mixer", [*sorted(MIXERS), "titan_memory"])
every_direction = pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
every_form = pytest.mark.parametrize("form", FORMS)


def context_of(length=6, batch_size=1, mask=None, **inputs):
    return SequenceContext.build(
        batch_size=batch_size,
        length=length,
        device=torch.device("cpu"),
        is_causal=True,
        attention_mask=None if mask is None else torch.tensor(mask),
        position_ids=torch.tensor(inputs.pop("position_ids")) if "position_ids" in inputs else None,
        borders={name: torch.tensor(value) if isinstance(value, list) else value for name, value in inputs.items()},
    )


# --- what is understood


@pytest.mark.parametrize(
    ("inputs", "documents"),
    [
        ({"position_ids": [[0, 1, 2, 0, 1, 0]]}, [0, 0, 0, 1, 1, 2]),
        ({"position_ids": [[0, 1, 2, 3, 0, 0]]}, [0, 0, 0, 0, 1, 2]),  # TRL's padding: each is a document of its own
        ({"position_ids": [[7, 8, 9, 0, 1, 2]]}, [0, 0, 0, 1, 1, 1]),  # the rest of a document that began elsewhere
        ({"position_ids": [[0, 3, 3, 9, 0, 5]]}, [0, 0, 0, 0, 1, 1]),
        ({"seq_idx": [[4, 4, 6, 9, 9, 9]]}, [0, 0, 1, 2, 2, 2]),
        ({"cu_seq_lens_q": [0, 1, 4, 6], "max_length_q": 3}, [0, 1, 1, 1, 2, 2]),
        ({"cu_seq_lens_k": [0, 1, 4, 6], "seq_idx": [[0, 1, 1, 1, 2, 2]]}, [0, 1, 1, 1, 2, 2]),
        ({"position_ids": [[1, 1, 1, 0, 1, 0]], "mask": [[0, 0, 0, 1, 1, 1]]}, [0, 0, 0, 0, 0, 1]),
        ({"position_ids": [[0, 1, 0, 0, 0, 1]], "mask": [[1, 1, 1, 0, 0, 1]]}, [0, 0, 1, 1, 1, 1]),  # pads are neither
        ({"seq_idx": [[-1, -1, 0, 0, 1, -1]], "mask": [[0, 0, 1, 1, 1, 0]]}, [0, 0, 0, 0, 1, 1]),
        ({"cu_seq_lens_q": [0, 2, 6], "mask": [[1, 1, 0, 1, 1, 0]]}, [0, 0, 0, 1, 1, 1]),
        # one document: nothing is told apart, and nothing is paid for
        ({"position_ids": [[0, 1, 2, 3, 4, 5]]}, None),
        ({"position_ids": [[0, 2, 2, 7, 7, 9]]}, None),
        ({"position_ids": [[3, 4, 5, 6, 7, 8]]}, None),
        ({"position_ids": [[0, 0, 0, 0, 1, 2]], "mask": [[0, 0, 0, 1, 1, 1]]}, None),
        ({"position_ids": [[1, 1, 1, 0, 1, 2]], "mask": [[0, 0, 0, 1, 1, 1]]}, None),
        ({"position_ids": [[0, 1, 2, 0, 0, 0]], "mask": [[1, 1, 1, 0, 0, 0]]}, None),
        ({"seq_idx": [[5] * 6]}, None),
        ({"cu_seq_lens_q": [0, 6]}, None),
    ],
    ids=str,
)
def test_documents_are_found(inputs, documents):
    context = context_of(**inputs)
    assert (None if context.documents is None else context.document_ids[0].tolist()) == documents


def test_positions_restart_where_nobody_gives_them():
    mask = [[0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]]
    context = context_of(batch_size=2, mask=mask, seq_idx=[[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2]])
    assert context.position_ids.tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 2, 0]]
    assert context.key_ids.tolist() == [[0, 0, 1, 2, 3, 3], [0, 1, 1, 2, 3, 4]]  # but distances go on
    assert context.is_contiguous


def test_a_collator_of_transformers_is_understood(tiny_model):
    packed = PackedRows(LENGTHS[:1])
    features = [{"input_ids": packed.ids[row, place]} for row, place in packed.documents]
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(features)
    assert {"position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"} <= batch.keys()
    model = tiny_model(HYBRID, "rms_norm", True, dtype=torch.float64)
    with torch.no_grad():
        expected = packed.one_by_one(lambda ids: model(ids, use_cache=False).logits)
        assert distance(model(**batch, use_cache=False).logits, expected) <= 1e-10


# --- what is refused


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"position_ids": [[0, 1, 2, 1, 2, 3]]}, "position_ids fall from 2 to 1 at token 3 of row 0"),
        ({"position_ids": [[2, 3, 4, 2, 3, 4]]}, "position_ids fall from 4 to 2 at token 3 of row 0"),
        ({"position_ids": [[0, 1, 2, 3, 0, 1]], "seq_idx": [[0, 0, 0, 1, 1, 1]]}, "token 3 of row 0"),
        (
            {"position_ids": [[0, 1, 2, 3, 4, 5]], "seq_idx": [[0, 0, 0, 1, 1, 1]]},
            "seq_idx begins a document at token 3 of row 0, where position_ids does not",
        ),
        (
            {"position_ids": [[0, 1, 0, 1, 2, 3]], "cu_seq_lens_q": [0, 6]},
            "position_ids begins a document at token 2 of row 0, where cu_seq_lens_q does not",
        ),
        ({"cu_seq_lens_q": [0, 2, 6], "cu_seq_lens_k": [0, 3, 6]}, "cu_seq_lens_q begins a document at token 2"),
        ({"seq_idx": [[0, 0, 1, 1, 0, 0]]}, "seq_idx falls from 1 to 0 at token 4 of row 0"),
        ({"seq_idx": [[0, 0, 1]]}, r"seq_idx has shape \(1, 3\), expected \(1, 6\)"),
        ({"cu_seq_lens_q": [0, 2, 5]}, "cu_seq_lens_q runs from 0 to 5, but must run from 0 to the 6 tokens"),
        ({"cu_seq_lens_k": [1, 2, 6]}, "cu_seq_lens_k runs from 1 to 6"),
        ({"cu_seq_lens_q": [0, 4, 3, 6]}, "cu_seq_lens_q must rise, but document 1 would run from 4 to 3"),
        ({"cu_seq_lens_q": [0, 4, 4, 6]}, "cu_seq_lens_q must rise, but document 1 would run from 4 to 4"),
        ({"cu_seq_lens_q": [[0, 6]]}, r"cu_seq_lens_q has shape \(1, 2\), expected \(documents \+ 1,\)"),
        (
            {"cu_seq_lens_q": [0, 5, 6], "max_length_q": 3},
            "max_length_q=3, but cu_seq_lens_q has a document of 5 tokens",
        ),
        ({"batch_size": 2, "cu_seq_lens_q": [0, 6]}, "the documents of one padding-free row, but the batch has 2 rows"),
    ],
    ids=str,
)
def test_borders_that_cannot_be_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message) as refusal:
        context_of(**inputs)
    assert "\n" not in str(refusal.value)


@every_form
def test_a_classifier_refuses_packed_rows(form, tiny_config):
    model, packed = FrankensteinForSequenceClassification(tiny_config(num_labels=3)), PackedRows(LENGTHS[:1])
    with pytest.raises(ValueError, match="a row holds several documents"):
        model(**packed.inputs(form))
    assert model(packed.ids, position_ids=torch.arange(packed.ids.shape[1])[None]).logits.shape == (1, 3)


@pytest.mark.parametrize("fields", [{}, ATTENTION_SLOTS], ids=["slots", "attention_slots"])
def test_a_memory_of_another_row_is_refused(fields, build_infinito):
    with pytest.raises(ValueError, match="shuffle_memory=True"):
        build_infinito(**fields)(shuffle_memory=True, **PackedRows(pads=PADS).inputs("seq_idx"))


# --- the loss


@every_form
@pytest.mark.parametrize("family", ["frankenstein", "infinito", "legacy"])
def test_no_token_is_asked_of_another_document(form, family, tiny_model, build_infinito, build_legacy):
    """The first token of a document is nobody's label, as if its collator had said so."""
    models = {
        "frankenstein": lambda: tiny_model(HYBRID, "rms_norm", True, dtype=torch.float64),
        "infinito": build_infinito,
        "legacy": lambda: build_legacy("modern twin"),
    }
    model, packed = models[family](), PackedRows(LENGTHS[:1])
    losses, total = [], 0
    with torch.no_grad():
        for row, place in packed.documents:
            document = packed.ids[row : row + 1, place]
            count = document.shape[1] - 1
            if count:
                losses.append(count * model(document, labels=document, use_cache=False).loss)
                total += count
        inputs = packed.inputs(form)
        expected = sum(losses) / total
        torch.testing.assert_close(model(labels=packed.ids, **inputs).loss, expected, rtol=1e-6, atol=0)
        shifted = torch.cat([packed.ids[:, 1:], torch.full((1, 1), -100)], dim=1)
        loss = model(labels=packed.ids, shift_labels=shifted, **inputs).loss
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        loss = model(labels=packed.ids, num_items_in_batch=7, **inputs).loss
        torch.testing.assert_close(loss, sum(losses) / 7, rtol=1e-6, atol=0)
        assert abs(model(packed.ids, labels=packed.ids, use_cache=False).loss - expected) > 1e-3


# --- isolation to the last bit


@every_mixer
@every_direction
def test_another_document_changes_no_bit(mixer, is_decoder, tiny_model):
    """In bfloat16 too, where a sum taken over another document would round differently."""
    model = tiny_model(mixer, "rms_norm", is_decoder, dtype=torch.bfloat16, attention_window=6, **CONV)
    packed = PackedRows(pads=PADS)
    other = packed.ids.clone()
    other[0, 11:12] = other[0, 11:12] % 58 + 3  # a document of one token, and one of twenty
    other[1, 2:22] = other[1, 2:22] % 58 + 3
    changed = other != packed.ids
    assert changed.any(1).all()
    inputs = {"attention_mask": packed.mask, "use_cache": False, **packed.borders("position_ids")}
    with torch.no_grad():
        before, after = (model(ids, **inputs).logits for ids in (packed.ids, other))
    own = torch.zeros_like(changed)
    own[0, 11:12], own[1, 2:22] = True, True
    real = packed.mask.bool()
    assert torch.equal(before[real & ~own], after[real & ~own])
    assert not torch.equal(before[own], after[own])


@every_mixer
@every_direction
def test_no_gradient_reaches_another_document(mixer, is_decoder, tiny_model):
    model, packed = tiny_model(mixer, "rms_norm", is_decoder, **CONV), PackedRows(pads=PADS)
    rows = model.get_input_embeddings()(packed.ids).detach().requires_grad_()
    logits = model(inputs_embeds=rows, attention_mask=packed.mask, **packed.borders("seq_idx")).logits
    second = slice(12, 19)  # of the first row
    logits[0, second].square().sum().backward()
    reached = rows.grad.abs().sum(-1) > 0
    assert reached[0, second].all()
    reached[0, second] = False
    assert not reached.any()


def test_decay_without_bounds_stays_finite():
    """A document that forgets everything at once leaves its neighbours finite, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[0] * 5 + [1] + [2] * 10])
    q, k, v = (torch.randn(1, 16, 2, 4, generator=generator, requires_grad=True) for _ in range(3))
    log_decay = torch.full((1, 16, 2), -0.1)
    log_decay[:, 2:4] = -1e30
    log_decay.requires_grad_()
    output, state = linear_scan_chunked(q, k, v, log_decay, 8, None, False, ids)
    alone, _ = linear_scan_chunked(*(x[:, 6:] for x in (q, k, v, log_decay)), 8)
    torch.testing.assert_close(output[:, 6:], alone)
    grads = torch.autograd.grad(output.sum() + state.sum(), (q, k, v, log_decay))
    assert all(grad.isfinite().all() for grad in grads)

    q, k, v = (x.detach().transpose(1, 2).requires_grad_() for x in (q, k, v))
    log_alpha, eta = log_decay.detach().transpose(1, 2).requires_grad_(), torch.full((1, 2, 16), 0.3)
    keys = torch.nn.functional.normalize(k, dim=-1)
    output, state = delta_scan_chunked(q, keys, v, log_alpha, eta, 8, None, ids)
    alone, _ = delta_scan_chunked(*(x[:, :, 6:] for x in (q, keys, v, log_alpha, eta)), 8)
    torch.testing.assert_close(output[:, :, 6:], alone)
    grads = torch.autograd.grad(output.sum() + state.sum(), (q, k, v, log_alpha))
    assert all(grad.isfinite().all() for grad in grads)


# --- torch.compile, where nobody looks at the borders


@pytest.mark.parametrize(
    ("mixers", "is_decoder", "forms"),
    [
        (("titan_memory", "mamba"), True, FORMS[:1]),
        pytest.param(HYBRID[:3], False, FORMS, marks=pytest.mark.slow),
        pytest.param(HYBRID[:3], True, FORMS, marks=pytest.mark.slow),
    ],
    ids=["quick", "encoder", "decoder"],
)
def test_compiled_models_keep_documents_apart(mixers, is_decoder, forms, tiny_model):
    torch.compiler.reset()
    model = tiny_model(mixers, "rms_norm", is_decoder, **CONV)
    compiled = torch.compile(model, backend="eager")
    for form in forms:  # all of one shape: another one would be compiled anew, and as a dynamic one
        packed = PackedRows(LENGTHS[:1]) if form == "cu_seq_lens" else PackedRows(([9, 1, 7, 1, 1, 10],), [(2, 1)])
        with torch.no_grad():
            expected, actual = (
                packed.real(each(use_cache=False, **packed.inputs(form)).logits) for each in (model, compiled)
            )
        assert distance(actual, expected) < 1e-5, form


EVERY_MIXER = (*sorted(MIXERS), "titan_memory")


@pytest.mark.parametrize(
    ("names", "is_decoder", "form"),
    [
        (("titan_memory", "retnet"), True, "seq_idx"),
        *(
            pytest.param(EVERY_MIXER, is_decoder, form, marks=pytest.mark.slow)
            for is_decoder in (False, True)
            for form in FORMS
        ),
    ],
    ids=str,
)
def test_documents_compile_into_one_graph(names, is_decoder, form, tiny_model):
    """Hyperbolic attention alone must look at positions that a caller gives, and so breaks the graph."""
    torch.compiler.reset()
    fields = {"use_hope": form != "position_ids", "position_type": "rope"} | CONV
    model, packed = tiny_model(names, "rms_norm", is_decoder, **fields), PackedRows(LENGTHS[:1])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, actual = (each(use_cache=False, **packed.inputs(form)).logits for each in (model, compiled))
    assert distance(actual, expected) < 1e-5


@pytest.mark.slow
def test_compiled_memories_keep_documents_apart(build_infinito):
    torch.compiler.reset()
    model, packed = build_infinito(), PackedRows(pads=PADS)
    with torch.no_grad():
        outputs = [
            each(use_cache=False, **packed.inputs("seq_idx")) for each in (model, torch.compile(model, backend="eager"))
        ]
    assert distance(*(packed.real(output.logits) for output in outputs)) < 1e-10


# --- a cache, which goes on from the last document


CAUSAL = {
    "hybrid": (HYBRID, CONV),
    "window": (HYBRID, {"attention_window": 4} | CONV),
    "loops": (("mamba", "standard_attn"), {"num_loops": 2, "position_type": "learned"}),
}


@pytest.mark.parametrize("case", CAUSAL)
def test_generation_goes_on_from_the_last_document(case, tiny_model):
    mixers, fields = CAUSAL[case]
    model = tiny_model(mixers, "rms_norm", True, dtype=torch.float64, **fields)
    packed = PackedRows(([9, 1, 7, 4], [10, 11]))
    lasts = [packed.ids[:1, -4:], packed.ids[1:, -11:]]
    expected = torch.cat([greedy(model, last, max_new_tokens=8)[:, last.shape[1] :] for last in lasts])
    for use_cache in (True, False):
        options = {"max_new_tokens": 8, "use_cache": use_cache, **packed.borders("position_ids")}
        assert torch.equal(greedy(model, packed.ids, **options)[:, packed.ids.shape[1] :], expected)
    assert not torch.equal(greedy(model, packed.ids, max_new_tokens=8)[:, packed.ids.shape[1] :], expected)


@pytest.mark.parametrize("case", CAUSAL)
@pytest.mark.parametrize("cuts", [(5, 6, 19), (11, 12, 13), (1, 2, 31)], ids=str)
def test_documents_may_begin_in_a_later_call(case, cuts, tiny_model):
    """Rows in pieces give what whole rows give, whether a piece ends within a document or with it."""
    mixers, fields = CAUSAL[case]
    model = tiny_model(mixers, "rms_norm", True, dtype=torch.float64, **fields)
    packed, cache, pieces = PackedRows(pads=PADS), model.new_cache(), []
    positions = packed.borders("position_ids")["position_ids"]
    stops = [*cuts, packed.ids.shape[1]]
    with torch.no_grad():
        expected = packed.real(model(use_cache=False, **packed.inputs("position_ids")).logits)
        for start, stop in zip([0, *cuts], stops, strict=True):
            piece = {"position_ids": positions[:, start:stop], "attention_mask": packed.mask[:, :stop]}
            pieces.append(model(packed.ids[:, start:stop], cache=cache, **piece).logits)
    assert distance(packed.real(torch.cat(pieces, dim=1)), expected) <= 1e-10
    assert cache.seen_tokens.tolist() == [13, 8]


@pytest.mark.parametrize("fields", [{}, ATTENTION_SLOTS], ids=["slots", "attention_slots"])
def test_memories_begin_in_a_later_call_too(fields, build_infinito):
    model, packed = build_infinito(**fields), PackedRows(pads=PADS)
    positions = packed.borders("position_ids")["position_ids"]
    cache, pieces = model.new_cache(), []
    with torch.no_grad():
        whole = model(use_cache=False, **packed.inputs("position_ids"))
        for start, stop in ((0, 6), (6, 7), (7, 20), (20, 34)):
            piece = {"position_ids": positions[:, start:stop], "attention_mask": packed.mask[:, :stop]}
            output = model(packed.ids[:, start:stop], cache=cache, **piece)
            pieces.append(output.logits)
    assert distance(packed.real(torch.cat(pieces, dim=1)), packed.real(whole.logits)) <= 1e-10
    for state, other in zip(output.memory_state, whole.memory_state, strict=True):
        assert_same_state(state, other)


@pytest.mark.parametrize("fields", [{}, ATTENTION_SLOTS], ids=["slots", "attention_slots"])
def test_the_memory_returned_is_that_of_the_last_document(fields, build_infinito):
    model, packed = build_infinito(**fields), PackedRows(pads=PADS)
    carried = model(PackedRows(([6], [6])).ids).memory_state
    with torch.no_grad():
        output = model(output_memory_reads=True, **packed.inputs("seq_idx"))
        again = model(memory_state=carried, **packed.inputs("seq_idx"))
        for row, size in enumerate((13, 8)):
            last = [place for index, place in packed.documents if index == row][-1]
            alone = model(packed.ids[row : row + 1, last], output_memory_reads=True)
            assert last.stop - last.start == size
            for index, state in enumerate(alone.memory_state):
                assert_same_state(output.memory_state[index].select(torch.tensor([row])), state)
                reads = output.memory_reads[index][row : row + 1, last]
                torch.testing.assert_close(reads, alone.memory_reads[index])
        first = packed.documents[0][1]  # which goes on from what is carried in
        state = [each.select(torch.tensor([0])) for each in carried]
        expected = model(packed.ids[:1, first], memory_state=state).logits
    torch.testing.assert_close(again.logits[:1, first], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again.logits[0, -9:-1], output.logits[0, -9:-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["seq_idx", "cu_seq_lens"])
def test_borders_beside_a_filled_cache_are_refused(form, tiny_model):
    model, packed = tiny_model(is_decoder=True), PackedRows(LENGTHS[:1])
    cache = model(packed.ids, use_cache=True).cache
    with pytest.raises(ValueError, match=r"beside a filled cache cannot tell .*: give position_ids, 0 where"):
        model(cache=cache, **packed.inputs(form))


def test_a_cache_goes_back_to_the_last_border_and_no_further(tiny_model):
    model, packed = tiny_model(is_decoder=True, dtype=torch.float64), PackedRows(LENGTHS[:1])
    with torch.no_grad():
        cache = model(use_cache=True, **packed.inputs("seq_idx")).cache
        cache.crop(-3)
        expected = model(packed.ids[:, -13:], use_cache=False).logits[:, -3:]
        assert distance(model(packed.ids[:, -3:], cache=cache).logits, expected) <= 1e-10
    with pytest.raises(ValueError, match="the last document of a row begins at column 19 of 32"):
        cache.crop(-14)
