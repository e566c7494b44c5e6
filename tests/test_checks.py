"""What a check says: of right answers, of wrong ones, and of none."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from affinity_lib import cam
from affinity_lib.affinity import half_plane_offsets
from affinity_lib.errors import InputError
from affinity_lib.evaluation import confusion, image_miou, iou
from affinity_lib.teaching import check, checking
from affinity_lib.teaching.checking import EXERCISES
from affinity_lib.teaching.exercise import Exercise, Property, close, has_stub


def iou_of(change):
    def answer(truth, guess, c):
        valid = truth != 255
        return change((truth == c), (guess == c), valid)

    return answer


def two_guesses(first, second):
    return lambda truth: (first(truth), second(truth))


def striped(truth):
    truth = truth.copy()
    truth[:, ::3] = 1
    return truth


def relu(maps):
    return maps.clamp(min=0)


def best_alpha(score):
    def answer(cams, tags, truth, alphas):
        labels = {a: cam.to_labels(cam.with_background(cams, a), tags).numpy() for a in alphas}
        return max(alphas, key=lambda a: score(truth, labels[a]))

    return answer


def trusted(cams, strong, weak, doubt=255):
    tags = range(1, len(cams) + 1)
    by_strong, by_weak = (
        cam.to_labels(cam.with_background(cams, a), tags).long() for a in (strong, weak)
    )
    labels = torch.full(cams.shape[1:], doubt)
    labels[by_strong > 0] = by_strong[by_strong > 0]
    labels[by_weak == 0] = 0
    return labels


def offsets(keep, gamma):
    reach = range(-int(gamma) - 1, int(gamma) + 2)
    return [(dy, dx) for dy in reach for dx in reach if keep(dy, dx)]


def pairs(first, second, known=lambda a: a != 255, negative=lambda a, b: a != b):
    both = known(first) & known(second)
    same = ~negative(first, second)
    return both & same & (first == 0), both & same & (first > 0), both & ~same


def rolled(features, dy, dx):
    other = features.roll((-dy, -dx), (1, 2))
    return torch.exp(-(features - other).abs().sum(dim=0))


def affinity_map(features, dy, dx, outside=0.0):
    _, h, w = features.shape
    W = torch.full((h, w), outside)
    for y in range(h):
        for x in range(w):
            if 0 <= y + dy < h and 0 <= x + dx < w:
                W[y, x] = torch.exp(-(features[:, y, x] - features[:, y + dy, x + dx]).abs().sum())
    return W


def loss(mean=lambda v: v.sum() / max(len(v), 1), weight=2, negative=lambda w: 1 - w, sign=-1):
    def answer(W, background, foreground, apart):
        parts = W[background].log(), W[foreground].log(), negative(W[apart]).log()
        bg, fg, neg = (mean(sign * part) for part in parts)
        return bg + fg + weight * neg

    return answer


def gradient(function, W):
    W = W.clone().requires_grad_()
    return torch.autograd.grad(function(W), W)[0]


def pull_of_the_given(function, W, mask):
    W.requires_grad_()
    function(W).backward()
    return W.grad.abs()[mask].sum() / W.grad.abs().sum()


def walk(steps=lambda t: t, power=torch.linalg.matrix_power, transpose=True):
    def answer(M, T, t):
        matrix = power(T, steps(t))
        return (M.flatten(1) @ (matrix.T if transpose else matrix)).view(M.shape)

    return answer


def end(weights):
    def answer(M, W, beta):
        d = weights(W, beta)
        return (d * M).sum() / d.sum()

    return answer


def coefficients(t, factor=2.0, half=0.5):
    from math import comb

    c = [factor * comb(t, (t - k) // 2) / 2**t if (t - k) % 2 == 0 else 0.0 for k in range(t + 1)]
    return [half * c[0], *c[1:]]


def cross_entropy(logits, labels, dim=1, divide="counted", void=True):
    if not void:
        labels = labels.where(labels != 255, 0)
    total = F.nll_loss(logits.log_softmax(dim), labels, ignore_index=255, reduction="sum")
    count = (labels != 255).sum().clamp(min=1)
    return total / {"counted": count, "all": labels.numel(), "none": 1}[divide]


def views(mirror=-1, back=-1):
    def answer(net, image):
        other = net(image.flip(mirror)).softmax(1)
        return ((net(image).softmax(1) + (other.flip(back) if back else other)) / 2)[0]

    return answer


def small_matrix_power(W, beta):
    b = torch.linalg.matrix_power(W, int(beta))
    return b / b.sum(dim=1, keepdim=True)


WRONG = {
    "0.1": [
        (lambda truth, guess, c: iou(confusion(truth, guess, 3)), "one number"),
        (iou_of(lambda t, g, v: (t & g & v).sum() / ((t | g) & v).sum()), "in percent"),
        (iou_of(lambda t, g, v: 100 * (t & g).sum() / (t | g).sum()), "void pixels"),
        (iou_of(lambda t, g, v: 100 * (t & g & v).sum() / (t & v).sum()), "only the guess gives"),
        (iou_of(lambda t, g, v: 100 * (t & g & v).sum() / (g & v).sum()), "the guess has missed"),
        (
            iou_of(lambda t, g, v: 100 * (t & g & v).sum() / ((t & v).sum() + (g & v).sum())),
            "counts each pixel once",
        ),
    ],
    "0.2": [
        (iou, "one number"),
        (lambda m: np.nan_to_num(iou(m)).mean(), "has no IoU"),
        (lambda m: np.nanmean(iou(m)) / 100, "in percent"),
        (lambda m: 100 * np.trace(m) / m.sum(), "one voice"),
        (lambda m: np.mean(iou(m)), "a finite number; yours is nan"),
        (
            lambda m: np.mean([100 * m[k, k] / m[k].sum() for k in range(4) if m[k].sum()]),
            "the row alone",
        ),
    ],
    "0.3": [
        (two_guesses(striped, np.zeros_like), "higher pixel accuracy"),
        (two_guesses(np.zeros_like, np.ones_like), "higher mIoU"),
        (two_guesses(np.zeros_like, lambda t: t), "higher pixel accuracy"),
        (two_guesses(np.zeros_like, lambda t: t * 255), "two labels, 0 and 1"),
        (np.zeros_like, "two label maps"),
    ],
    "1.1": [
        (lambda f, w: w @ f.mean(dim=(1, 2)), "a map for each class"),
        (lambda f, w: torch.einsum("cd,dhw->chw", w, f) / len(f), "must be the score"),
        (lambda f, w: torch.einsum("cd,dhw->chw", w.abs(), f), "speak against"),
        (lambda f, w: torch.einsum("cd,dhw->dhw", w, f), "a map for each class"),
        (lambda f, w: relu(torch.einsum("cd,dhw->chw", w, f)), "speak against"),
    ],
    "1.2": [
        (lambda e, tags: relu(e[tags[-1:]]) / 1, "a map for each tag"),
        (
            lambda e, tags: (
                (m := relu(e.roll(-1, 0)[[t - 1 for t in tags]])) / m.amax((1, 2), keepdim=True)
            ),
            "tag 1 is the first map",
        ),
        (lambda e, tags: (m := relu(e[[t - 1 for t in tags]])) / m.max(), "its own maximum"),
        (
            lambda e, tags: (m := e[[t - 1 for t in tags]]) / m.amax((1, 2), keepdim=True),
            "counts as none",
        ),
        (
            lambda e, tags: (m := relu(e[[t - 1 for t in tags]])) / m.sum((1, 2), keepdim=True),
            "strongest place",
        ),
        (lambda e, tags: relu(e) / relu(e).amax((1, 2), keepdim=True), "a map for each tag"),
        (lambda e, tags: EXERCISES["1.2"].reference(e, sorted(tags)), "in the order of the tags"),
    ],
    "1.3": [
        (lambda cams, alpha: 1 - cams.amax(0), "alpha is an exponent"),
        (lambda cams, alpha: 1 - cams.amax(0) ** alpha, "whole bracket"),
        (lambda cams, alpha: (1 - cams.mean(0)) ** alpha, "the mean of the classes"),
        (lambda cams, alpha: (1 - cams.amin(0)) ** alpha, "the weakest"),
        (lambda cams, alpha: (1 - cams.amax(1)) ** alpha, "one map for all classes"),
        (lambda cams, alpha: (1 - cams) ** alpha, "one map for all classes"),
    ],
    "1.4": [
        (lambda cams, tags, truth, alphas: 16, "the paper's 16"),
        (best_alpha(lambda t, g: -image_miou(t, g, 2)), "yours has the lowest"),
        (best_alpha(lambda t, g: (g == 0).mean()), "has the highest mIoU on these maps"),
        (lambda cams, tags, truth, alphas: 3, "one of the alphas"),
        (lambda cams, tags, truth, alphas: alphas, "one of the alphas"),
    ],
    "2.1": [
        (lambda cams, s, w: trusted(cams, w, s), "from the small alpha"),
        (lambda cams, s, w: trusted(cams, s, w, doubt=0), "the label is neutral"),
        (lambda cams, s, w: trusted(cams, s, w)[0], "a label for each pixel"),
        (lambda cams, s, w: trusted(cams, s, w).clamp(min=1), "background is trusted"),
        (lambda cams, s, w: torch.where((t := trusted(cams, s, w)) == 1, 9, t), "its class"),
    ],
    "2.2": [
        (
            lambda g: offsets(lambda dy, dx: dy**2 + dx**2 <= g**2 and (dy, dx) > (0, 0), g),
            "below gamma",
        ),
        (
            lambda g: offsets(lambda dy, dx: max(abs(dy), abs(dx)) < g and (dy, dx) > (0, 0), g),
            "as the crow flies",
        ),
        (lambda g: offsets(lambda dy, dx: dy**2 + dx**2 < g**2, g), "no pair with itself"),
        (
            lambda g: offsets(lambda dy, dx: 0 < dy**2 + dx**2 < g**2, g),
            "one half of the disk",
        ),
        (lambda g: (-half_plane_offsets(g)).tolist(), "below and to the right"),
        (
            lambda g: [(dy, dx) for dy, dx in half_plane_offsets(g).tolist() if dx >= 0],
            "dx may be negative",
        ),
        (lambda g: [dy for dy, _ in half_plane_offsets(g).tolist()], "a list of pairs"),
        (lambda g: np.argwhere(np.zeros((5, 5))), "a list of pairs"),
        (lambda g: half_plane_offsets(g).tolist() + [(0, 1)], "yours has (0, 1) twice"),
    ],
    "2.3": [
        (lambda a, b: pairs(a, b, known=lambda v: v >= 0), "with a neutral pixel"),
        (
            lambda a, b: pairs(a, b, negative=lambda a, b: (a != b) & (a > 0) & (b > 0)),
            "background",
        ),
        (
            lambda a, b: pairs(a, b, negative=lambda a, b: (a == 0) != (b == 0)),
            "two objects of different classes",
        ),
        (lambda a, b: torch.stack(pairs(a, b))[[1, 0, 2]], "of the first mask"),
        (lambda a, b: pairs(a, b)[1:], "three masks"),
    ],
    "2.4": [
        (
            lambda labels, truth: (
                (labels != 255)[truth != 255].mean(),
                (labels == truth)[(truth != 255) & (labels != 255)].mean(),
            ),
            "in percent",
        ),
        (
            lambda labels, truth: (
                100 * (labels != 255).mean(),
                100 * (labels == truth)[(truth != 255) & (labels != 255)].mean(),
            ),
            "where the truth is void",
        ),
        (
            lambda labels, truth: (
                100 * (labels != 255)[truth != 255].mean(),
                100 * (labels == truth)[truth != 255].mean(),
            ),
            "among the trusted",
        ),
        (
            lambda labels, truth: EXERCISES["2.4"].reference(labels, truth)[::-1],
            "coverage comes first",
        ),
        (lambda labels, truth: 50.0, "two numbers"),
    ],
    "3.1": [
        (lambda a, b: torch.exp(-(a - b).abs().mean(1)), "the released code's"),
        (lambda a, b: torch.exp(-(a - b).norm(dim=1)), "yours is L2"),
        (lambda a, b: torch.exp(-(a - b).sum(1)), "must not cancel"),
        (lambda a, b: torch.exp((a - b).abs().sum(1)), "has a minus"),
        (lambda a, b: torch.exp(-(a - b).abs().sum(0)), "an affinity for each pair"),
        (lambda a, b: -(a - b).abs().sum(1), "equal pixels have"),
    ],
    "3.2": [
        (rolled, "wraps round"),
        (lambda f, dy, dx: affinity_map(f, -dy, -dx), "looks the other way"),
        (lambda f, dy, dx: rolled(f, -dy, -dx), "looks the other way"),
        (lambda f, dy, dx: affinity_map(f, dy, dx, outside=1.0), "lies outside"),
        (lambda f, dy, dx: affinity_map(f, dx, dy), "which of dy and dx"),
        (lambda f, dy, dx: affinity_map(f, dy, dx)[: 4 - dy], "a value for each cell"),
    ],
    "3.3": [
        (loss(mean=lambda v: v.mean()), "yours makes the loss nan"),
        (loss(weight=1), "counts the negative pairs twice"),
        (loss(negative=lambda w: w), "which would pull it to 1"),
        (loss(sign=1), "a loss is positive"),
        (loss(mean=lambda v: v.sum()), "grows with the image"),
        (
            lambda W, bg, fg, neg: -torch.cat([W[bg | fg].log(), (1 - W[neg]).log()]).mean(),
            "averages over all pairs",
        ),
        (lambda W, bg, fg, neg: -W.log(), "one number"),
    ],
    "3.4": [
        (lambda f, W, mask: (g := gradient(f, W))[mask].sum() / g.sum(), "must not cancel"),
        (lambda f, W, mask: mask.float().mean(), "the number of pairs"),
        (lambda f, W, mask: gradient(f, W).abs()[mask].sum(), "not divided"),
        (lambda f, W, mask: gradient(f, W).abs() / len(W), "one number"),
        (lambda f, W, mask: -gradient(f, W).abs()[mask].mean(), "between 0 and 1"),
        (pull_of_the_given, "work on a copy of W"),
    ],
    "4.1": [
        (lambda W, beta: W / W.sum(1, keepdim=True), "raised to the power"),
        (lambda W, beta: beta * W / (beta * W).sum(1, keepdim=True), "a factor beta cancels"),
        (lambda W, beta: (W / W.sum(1, keepdim=True)) ** beta, "before the division"),
        (lambda W, beta: W**beta / (W**beta).sum(0, keepdim=True), "the columns do"),
        (lambda W, beta: W**beta, "the rows must sum to one"),
        (small_matrix_power, "power of the matrix"),
        (lambda W, beta: (W**beta).sum(1), "a row and a column"),
    ],
    "4.2": [
        (walk(transpose=False), "T stands at the left"),
        (walk(power=lambda T, t: T**t), "changes nothing"),
        (walk(power=lambda T, t: T**t if t else torch.eye(12)), "raises each entry"),
        (walk(steps=lambda t: min(t, 1)), "yours makes one"),
        (walk(steps=lambda t: max(t - 1, 0)), "makes one less"),
        (walk(steps=lambda t: t + 1), "changes nothing"),
        (walk(steps=lambda t: t + (t > 0)), "makes one more"),
        (lambda M, T, t: (m := walk()(M, T, t)) / m.amax((1, 2), keepdim=True), "changes nothing"),
        (
            lambda M, T, t: M if t == 0 else (m := walk()(M, T, t)) / m.max(),
            "the same everywhere stays",
        ),
        (lambda M, T, t: walk()(M, T, t)[1:], "a map for each class"),
    ],
    "4.3": [
        (lambda M, W, beta: M.mean(), "the plain mean"),
        (end(lambda W, beta: W.sum(1)), "leaves beta out"),
        (end(lambda W, beta: 1 / (W**beta).sum(1)), "weighs with 1 / D"),
        (lambda M, W, beta: ((W**beta).sum(1) * M).sum(), "divide by the sum"),
        (lambda M, W, beta: M, "one number"),
    ],
    "4.4": [
        (lambda t: coefficients(t, half=1), "half of the formula"),
        (lambda t: coefficients(t, factor=1.0), "sum to one"),
        (lambda t: [1 / (t + 1)] * (t + 1), "the coefficient 0"),
        (lambda t: coefficients(t)[::-1], "degree"),
        (lambda t: coefficients(t)[:-1], "each degree from 0"),
    ],
    "5.1": [
        (lambda scores, tags: scores.argmax(0), "the place of its map"),
        (lambda scores, tags: torch.tensor(tags)[scores[1:].argmax(0)], "the background competes"),
        (lambda scores, tags: torch.tensor([0, *tags])[scores.argmin(0)], "highest score wins"),
        (lambda scores, tags: torch.tensor([0, *tags])[scores.argmax(0)][0], "each pixel"),
        (lambda scores, tags: cam.to_labels(scores, sorted(tags)), "in the order of the tags"),
    ],
    "5.2": [
        (
            lambda scores, tags, size: F.interpolate(
                cam.to_labels(scores, tags)[None, None].float(), size
            )[0, 0],
            "decided afterwards",
        ),
        (
            lambda scores, tags, size: cam.to_labels(
                F.interpolate(scores[None], size, mode="bilinear", align_corners=True)[0], tags
            ),
            "align_corners=False",
        ),
        (lambda scores, tags, size: cam.to_labels(scores, tags), "each pixel of the image"),
        (
            lambda scores, tags, size: F.interpolate(scores[None], size, mode="bilinear")[0].argmax(
                0
            ),
            "the library",
        ),
    ],
    "5.3": [
        (
            lambda d, c, sxy, srgb: (
                (torch.exp(-(d**2) / (2 * sxy**2)) + torch.exp(-(c**2) / (2 * srgb**2))) / 2
            ),
            "are multiplied",
        ),
        (
            lambda d, c, sxy, srgb: torch.exp(-(d**2) / (2 * srgb**2) - c**2 / (2 * sxy**2)),
            "the two exchanged",
        ),
        (lambda d, c, sxy, srgb: torch.exp(-(c**2) / (2 * srgb**2)), "colour alone"),
        (lambda d, c, sxy, srgb: torch.exp(-((d / sxy) ** 2) - (c / srgb) ** 2), "exp(-1/2)"),
        (
            lambda d, c, sxy, srgb: torch.exp(-d / (2 * sxy**2) - c / (2 * srgb**2)),
            "are squared",
        ),
        (
            lambda d, c, sxy, srgb: 10 * torch.exp(-(d**2) / (2 * sxy**2) - c**2 / 2 / srgb**2),
            "the weight 1 with itself",
        ),
    ],
    "6.1": [
        (lambda logits, labels: cross_entropy(logits, labels, void=False), "for background"),
        (lambda logits, labels: cross_entropy(logits, labels, divide="all"), "void ones included"),
        (lambda logits, labels: cross_entropy(logits, labels, divide="none"), "yours is a sum"),
        (lambda logits, labels: cross_entropy(logits, labels, dim=-1), "over another dimension"),
        (lambda logits, labels: -cross_entropy(logits, labels), "not negative"),
        (lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=255), "all void"),
    ],
    "6.2": [
        (views(back=None), "mirrored back"),
        (lambda net, image: net(image).softmax(1)[0], "the first view alone"),
        (views(mirror=-2, back=-2), "stands on its head"),
        (
            lambda net, image: ((net(image) + net(image.flip(-1)).flip(-1)) / 2).softmax(1)[0],
            "averages logits",
        ),
        (lambda net, image: 2 * views()(net, image), "sum to one"),
        (lambda net, image: views()(net, image)[None], "without the batch"),
    ],
    "6.3": [
        (lambda features, labels: labels, "answer for itself"),
        (lambda features, labels: torch.zeros_like(labels), "one label to every pixel"),
        (lambda features, labels: features.argmin(1), "more often than its teacher"),
        (lambda features, labels: features.argmax(1), "whatever they say"),
        (lambda features, labels: features, "a label for each pixel"),
    ],
}
"""Wrong answers to each exercise, and words of the sentence that must refuse them."""


@pytest.fixture(autouse=True)
def nothing_failed_before():
    checking._failed.clear()


def said(capsys) -> str:
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("number", EXERCISES)
def test_at_least_three_wrong_answers_are_planted_for_each_check(number):
    assert len(WRONG[number]) >= 3
    words = Counter(words for _, words in WRONG[number])
    assert len(words) >= 3


PLANTED = [(number, k) for number, answers in WRONG.items() for k in range(len(answers))]


@pytest.mark.parametrize("number, k", PLANTED)
def test_a_wrong_answer_is_refused_with_the_sentence_that_names_the_property(number, k, capsys):
    answer, words = WRONG[number][k]
    check(number, answer)
    sentence = said(capsys)
    assert sentence.startswith(f"{number} is not right yet. ") and words.lower() in sentence.lower()
    assert "stops at" not in sentence and "{" not in sentence


@pytest.mark.parametrize("number", [n for n, e in EXERCISES.items() if e.reference])
def test_the_librarys_answer_is_right(number, capsys):
    check(number, EXERCISES[number].reference)
    assert said(capsys).startswith(f"{number} is solved. ")


@pytest.mark.parametrize("number", EXERCISES)
def test_every_sentence_ends_as_one_and_every_exercise_has_hints_and_a_last_word(number):
    exercise = EXERCISES[number]
    assert len(exercise.hints) >= 2 and exercise.insight.endswith(".")
    assert not [p.sentence for p in exercise.properties if p.sentence.endswith(".")]


def test_asked_again_a_check_gives_one_more_hint_each_time_and_the_last_one_for_ever(capsys):
    first, *hints = ([check("4.1", lambda W, beta: W), said(capsys)][1] for _ in range(4))
    assert "Hint" not in first
    one, two = EXERCISES["4.1"].hints
    assert [hint.partition("Hint: ")[2] for hint in hints] == [one, two, two]


def test_a_solved_exercise_begins_again_without_hints(capsys):
    for answer in (lambda W, beta: W, EXERCISES["4.1"].reference, lambda W, beta: W):
        check("4.1", answer)
    assert "Hint" not in said(capsys)


def open_stub(W, beta): ...


def open_name(W, beta):
    W_beta = ...
    return W_beta / W_beta.sum()


def half_open(W, beta):
    """The first line is there, the second is not."""
    W = W**beta
    ...  # noqa: PIE790


def without_return(W, beta):
    W / W.sum()


def failing(W, beta):
    return W.no_such_method()


@pytest.mark.parametrize("answer", [open_stub, open_name, half_open, ...])
def test_an_exercise_without_an_answer_is_still_open(answer, capsys):
    check("4.1", answer)
    check("4.1", answer)
    first, second = said(capsys).splitlines()
    assert first == "4.1 is still open." and second.startswith("4.1 is still open. Hint: ")


def test_an_ellipsis_in_an_index_is_no_stub():
    assert not has_stub(lambda W: W[..., 0]) and has_stub(open_stub)


@pytest.mark.parametrize(
    "answer, words",
    [
        (without_return, "returns nothing"),
        (failing, "stops at `return W.no_such_method()`: AttributeError"),
        (lambda: 1, "TypeError"),
        (lambda W, beta: "T", "numbers in one tensor"),
        (torch.eye(3), "the function itself"),
    ],
)
def test_an_answer_that_is_none_is_told_in_a_sentence(answer, words, capsys):
    check("4.1", answer)
    assert words in said(capsys)


def test_an_answer_must_not_write_into_what_the_cells_below_read(capsys):
    def answer(W, beta):
        W.pow_(beta)
        return W.div_(W.sum(dim=1, keepdim=True))

    check("4.1", answer)
    assert said(capsys) == (
        "4.1 is not right yet. Others read W, too, and it must stay as it was; yours changes it: work "
        "on a copy of W."
    )


def test_an_answer_that_warns_is_right_and_silent_as_a_grader_counts_a_warning(capsys):
    def answer(matrix):
        print("by hand", file=sys.stderr)
        joint = matrix.diagonal()
        return np.nanmean(100 * joint / (matrix.sum(0) + matrix.sum(1) - joint))  # 0 / 0

    for _ in range(2):
        check("0.2", answer)
    out, err = capsys.readouterr()
    assert out.count("0.2 is solved") == 2 and err == ""


def test_an_array_may_be_a_view_from_behind(capsys):
    check("4.4", lambda t: np.array(coefficients(t)[::-1])[::-1])
    assert "4.4 is solved" in said(capsys)


def test_an_unknown_exercise_is_refused_by_name():
    with pytest.raises(InputError, match=r"no exercise '9\.9': there are 0\.1, "):
        check("9.9", open_stub)


@pytest.mark.parametrize(
    "name, value", [("AFFINITY_CHECKS", "strict"), ("NBGRADER_EXECUTION", "autograde")]
)
def test_strict_checks_and_nbgrader_stop_at_what_is_open_or_wrong(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    for answer, words in ((open_stub, "4.1 is still open"), (lambda W, b: W, "not right yet")):
        with pytest.raises(checking.NotSolved, match=words):
            check("4.1", answer)
    check("4.1", EXERCISES["4.1"].reference)
    assert said(capsys).startswith("4.1 is solved")


def test_a_strict_check_shows_its_sentence_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setenv("AFFINITY_CHECKS", "strict")
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    result = shell.run_cell("from affinity_lib.teaching import check\ncheck('4.1', ...)")
    assert not result.success and said(capsys) == "4.1 is still open."


def test_a_check_returns_nothing_as_nbgrader_reads_a_number_as_points(capsys):
    assert check("4.1", open_stub) is None
    assert capsys.readouterr().err == ""


def test_a_verdict_has_a_color_and_a_mark_in_a_notebook():
    solved = checking.Verdict("4.1 is solved", "Rows of `T` & more.", solved=True)._repr_html_()
    other = checking.Verdict("4.1 is still open", "")._repr_html_()
    assert "<code>T</code> &amp; more" in solved
    assert "#009e73" in solved and "#e69f00" in other and "&#10003;" not in other


def test_properties_are_looked_at_in_their_order_and_values_come_last():
    exercise = Exercise(
        "9.1",
        lambda: [{"x": torch.ones(2)}],
        [
            Property("a sum of 2; yours is {:.0f}", lambda c: close(c.got.sum(), 2), lambda c: 9),
            Property("never looked at", lambda c: False),
        ],
        [],
        "",
        torch.clone,
    )
    assert exercise.fault(lambda x: 3 * x) == "a sum of 2; yours is 9"
    assert exercise.fault(lambda x: x) == "never looked at"
