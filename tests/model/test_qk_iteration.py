"""QK iteration: the loss by its definition, who trains when, and what is remembered."""

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import Tensor

from model.encoder import SmallResNet
from model.method import JointEmbedding, QKIteration
from model.objective import NTXent
from model.optimizer import build_optimizer

B, V, W = 6, 2, 3  # samples, views of the queries, views of the keys


def method(**settings) -> QKIteration:
    torch.manual_seed(0)
    settings = {"start_steps": 0, "phase_steps": 2, "keys": 50, "memory_type": "float32"} | settings
    made = QKIteration(encoder=SmallResNet(width=4), hidden_size=16, embedding_size=8, **settings)
    return made.train()


def batch(seed: int, views: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, B, 3, 16, 16, generator=generator)


def shown(views: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    for seed in count(100):
        ids = (torch.arange(B) + seed * B) % 20
        yield batch(seed, views), ids


def begin(made: QKIteration, step: int) -> None:
    request = made.memory_due(step)
    assert request is not None
    made.remember(request, shown())


def own_keys(views: tuple[Tensor, ...], made: QKIteration) -> tuple[Tensor, Tensor]:
    """Embeddings as they are with batch norm's batch statistics on the side that trains."""
    return made.embed(views[0]).double(), made.embed_reference(views[1]).double()


@pytest.mark.parametrize("step", [0, 2])
@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_of_own_keys(step: int) -> None:
    made = method()
    begin(made, step)
    views, ids = (batch(1), batch(2, W)), torch.arange(B)
    loss = made(views, ids).loss
    q_VBD, k_WBD = own_keys(views, made)
    asks, own = (q_VBD, k_WBD) if step == 0 else (k_WBD, q_VBD)
    remembered = []
    for views_VBCHW, id_B in shown():
        embed = made.embed_reference if step == 0 else made.embed
        remembered += zip(embed(views_VBCHW)[0].double(), id_B.tolist(), strict=True)
        if len(remembered) >= 50:
            break
    losses = []
    for z_BD in asks:
        for own_BD in own:
            for b in range(B):
                others = [z_BD[b] @ key for key, id in remembered[:50] if id != ids[b]]
                logits = torch.stack([z_BD[b] @ own_BD[b], *others]) / made.temperature
                losses.append(-logits.log_softmax(0)[0])
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


def test_sides_take_turns_and_the_frozen_one_stays_bit_for_bit() -> None:
    """With weight decay and momentum, which move weights that have a gradient of zero."""
    for name in ("adamw", "sgd", "lars"):
        made = method()
        optimizer = build_optimizer(
            made, name=name, learning_rate=0.01, weight_decay=0.1, momentum=0.9
        )
        turns = []
        for step in range(8):
            if made.memory_due(step) is not None:
                begin(made, step)
            before = {name: value.clone() for name, value in made.state_dict().items()}
            made((batch(step), batch(step + 50, W)), torch.arange(B)).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            moved = {
                name.split(".")[0]
                for name, value in made.state_dict().items()
                if not torch.equal(value, before[name])
            }
            turns.append(moved)
        query, key = {"encoder", "projector"}, {"key_encoder", "key_projector"}
        assert turns == [query, query, key, key, query, query, key, key]


def test_a_memory_is_due_as_a_phase_begins_and_when_there_is_none() -> None:
    made = method(phase_steps=3)
    due = []
    for step in range(7):
        request = made.memory_due(step)
        if request is not None:
            begin(made, step)
            due.append((step, request.phase, request.group))
    assert due == [(0, 0, -1), (3, 1, 0), (6, 2, -1)]
    resumed = method(phase_steps=3).memory_due(4)
    assert resumed is not None and (resumed.phase, resumed.group, resumed.keys) == (1, 0, 50)


def test_a_continued_phase_has_the_same_memory_and_no_step_saves_it() -> None:
    made = method(phase_steps=4)
    begin(made, 0)
    optimizer = build_optimizer(made, name="sgd", learning_rate=0.1, weight_decay=0.1, momentum=0.9)
    for step in range(3):
        made((batch(step), batch(step, W)), torch.arange(B)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    continued = method(phase_steps=4)
    continued.load_state_dict(made.state_dict())
    begin(continued, 3)
    old, new = made._memory, continued._memory
    assert old is not None and new is not None
    assert torch.equal(old.key_ND, new.key_ND) and torch.equal(old.id_N, new.id_N)
    assert len(old.key_ND) == 50
    assert sum(value.numel() for value in made.state_dict().values()) < 60_000
    assert not any(len(value) == 50 for value in made.state_dict().values() if value.ndim)


def steps_of(made: QKIteration, first: int, last: int) -> list[float]:
    """Train from one step to before another, as the program does."""
    optimizer = build_optimizer(made, name="sgd", learning_rate=0.1, weight_decay=0.0, momentum=0)
    losses = []
    for step in range(first, last):
        request = made.memory_due(step)
        if request is not None:
            made.remember(request, shown())
        output = made((batch(step), batch(step + 50, W)), (torch.arange(B) + step) % 20)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        made.after_step(0.5)
        losses.append(output.loss.item())
    return losses


CHEAPER = (
    {"fill_parts": 4},
    {"fill_parts": 0, "step_keys": True},
    {"fill_parts": 3, "step_keys": True},
    {"fill_parts": 1, "step_keys": True},
)


@pytest.mark.parametrize("settings", CHEAPER)
@pytest.mark.parametrize("memory_type", ["float32", "float16"])
def test_a_run_with_lasting_memories_goes_on_from_its_state(
    settings: dict, memory_type: str
) -> None:
    settings = settings | {"start_steps": 1, "phase_steps": 3, "memory_type": memory_type}
    for cut in (1, 5, 7):  # as the first phase begins, within the second, as the third begins
        whole = method(**settings)
        losses = steps_of(whole, 0, cut)
        continued = method(**settings)
        continued.load_state_dict({name: v.clone() for name, v in whole.state_dict().items()})
        losses += steps_of(whole, cut, 11)
        assert steps_of(continued, cut, 11) == losses[cut:]
        state = continued.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    assert len({*losses}) == 11


def test_a_fill_in_parts_renews_the_oldest_keys() -> None:
    """Against a list: the first phase of each side takes 50 keys, later ones a third of them."""
    made = method(fill_parts=3)
    lists: dict[bool, list[Tensor]] = {True: [], False: []}
    for step in range(10):
        request = made.memory_due(step)
        assert (request is None) == (step % 2 == 1)
        if request is None:
            continue
        assert request.keys == (50 if step < 4 else 17)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.02
        begin(made, step)
        of_queries = step % 4 == 2
        embed = made.embed if of_queries else made.embed_reference
        seen: list[Tensor] = []
        for views_VBCHW, _ in shown():
            if len(seen) >= request.keys:
                break
            with torch.no_grad():
                seen += list(embed(views_VBCHW)[0])
        lists[of_queries] = [*lists[of_queries], *seen[: request.keys]][-50:]
        ring = made.query_ring if of_queries else made.key_ring
        assert ring is not None
        oldest = int(ring.pushed) % 50
        torch.testing.assert_close(
            torch.cat([ring.key_ND[oldest:], ring.key_ND[:oldest]]), torch.stack(lists[of_queries])
        )


@torch.no_grad()
def test_keys_of_steps_are_negatives_of_later_steps_and_never_of_their_own() -> None:
    """Both sides' memories, against lists of what the steps have embedded."""
    made = method(fill_parts=0, step_keys=True, start_steps=2, phase_steps=3, keys=70)
    lists: dict[str, list[tuple[Tensor, int]]] = {"query": [], "key": []}
    for step in range(9):
        request = made.memory_due(step)
        if request is not None:
            assert request.keys == 0
            made.remember(request, iter(()))
        views, ids = (batch(step), batch(step + 50, W)), (torch.arange(B) + step) % 20
        queries_train = step < 5 or step == 8
        q_VBD, k_WBD = made.embed(views[0]), made.embed_reference(views[1])
        z_VBD, own_WBD = (q_VBD, k_WBD) if queries_train else (k_WBD, q_VBD)
        loss = made(views, ids).loss
        if step >= 2:
            losses = []
            for z_BD in z_VBD:
                for own_BD in own_WBD:
                    for b in range(B):
                        keys = lists["key" if queries_train else "query"]
                        others = [z_BD[b] @ key for key, id in keys if id != ids[b]]
                        logits = torch.stack([z_BD[b] @ own_BD[b], *others]) / made.temperature
                        losses.append(-logits.log_softmax(0)[0])
            assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
        made.after_step(0.5)
        k_WBD = made.embed(views[1]) if step < 2 else k_WBD  # one model at the start
        for name, rows in (("query", q_VBD), ("key", k_WBD)):
            pairs = [(z, id) for z_BD in rows for z, id in zip(z_BD, ids.tolist(), strict=True)]
            lists[name] = [*lists[name], *pairs][-70:]


def test_the_frozen_side_is_in_eval_mode_and_evaluation_leaves_it_so() -> None:
    made = method()
    for step, (query, key) in ((0, (True, False)), (2, (False, True))):
        begin(made, step)
        made.eval()
        made.train()
        assert (made.encoder.training, made.projector.training) == (query, query)
        assert (made.key_encoder.training, made.key_projector.training) == (key, key)


def test_with_one_group_the_first_view_asks_and_the_last_is_the_key() -> None:
    made = method()
    begin(made, 0)
    views, ids = batch(1, 2), torch.arange(B)
    one = made((views,), ids).loss
    assert torch.equal(one, made((views[:1], views[1:]), ids).loss)


@pytest.mark.parametrize(("half", "by"), [("bfloat16", 0.02), ("float16", 0.002)])
def test_half_precision_takes_half_and_moves_the_loss_little(half: str, by: float) -> None:
    losses = []
    for memory_type in ("float32", half):
        made = method(memory_type=memory_type)
        begin(made, 0)
        assert made._memory is not None
        assert made._memory.key_ND.element_size() == (4 if memory_type == "float32" else 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=memory_type == "bfloat16"):
            losses.append(made((batch(1), batch(2, W)), torch.arange(B)).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=by)
    assert losses[0] != losses[1]


def test_at_the_start_one_model_trains_as_simclr_does_and_the_other_follows() -> None:
    made = method(start_steps=3)
    assert made.memory_due(0) is made.memory_due(2) is None
    request = made.memory_due(3)
    assert request is not None and (request.phase, request.group) == (0, -1)
    views = batch(1), batch(2, W)
    output = made(views, torch.arange(B))
    simclr = JointEmbedding(
        encoder=SmallResNet(width=4),
        objective=NTXent(temperature=0.07),
        hidden_size=16,
        embedding_size=8,
    )
    mine = made.state_dict()
    simclr.load_state_dict({name: mine[name] for name in simclr.state_dict()})
    assert output.loss.item() == pytest.approx(simclr(views).loss.item(), abs=1e-6)
    output.loss.backward()
    for name, parameter in made.named_parameters():
        assert (parameter.grad is None) == name.startswith("key_")
    with torch.no_grad():
        for parameter in (*made.encoder.parameters(), *made.projector.parameters()):
            parameter += 0.1
    made.after_step(0.1)
    made.eval()
    assert torch.equal(made.embed(views[0]), made.embed_reference(views[0]))
    begin(made, 3)
    with torch.no_grad():
        next(made.encoder.parameters()).add_(0.1)
    made.after_step(0.2)  # no longer
    assert not torch.equal(made.embed(views[0]), made.embed_reference(views[0]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, ["temperature=0", "above 0"]),
        ({"phase_steps": 0}, ["phase_steps=0", "1 or more"]),
        ({"start_steps": -1}, ["start_steps=-1", "no negative start"]),
        ({"keys": 0}, ["keys=0", "1 or more"]),
        ({"fill_parts": 0}, ["fill_parts=0", "--method.step_keys true"]),
        ({"fill_parts": 51}, ["fill_parts=51", "1 to keys=50"]),
    ],
)
def test_impossible_settings_are_refused(settings: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        method(**settings)
    for word in words:
        assert word in str(error.value)


def test_impossible_views_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding_size=512, expected 1 to 256"):
        QKIteration(encoder=SmallResNet(width=4), embedding_size=512)
    for counts, words in (((3,), "3 views in one group"), ((1, 1, 1), "3 view groups")):
        with pytest.raises(ValueError, match=words):
            method().refuse(counts=counts, sizes=(16,) * len(counts), batch_size=4)
    with pytest.raises(ValueError, match="batch_size=1"):
        method().refuse(counts=(2,), sizes=(16,), batch_size=1)
    with pytest.raises(ValueError, match="keys=50 is less than the 52 views of a step"):
        method(step_keys=True).refuse(counts=(1, 4), sizes=(16, 16), batch_size=13)
    for counts in ((2,), (1, 1), (4, 2)):
        method().refuse(counts=counts, sizes=(16,) * len(counts), batch_size=4)
