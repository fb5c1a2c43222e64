"""Which figures are in the gallery, what does each show, what was published like it, and which command makes it?"""

from __future__ import annotations

from dataclasses import dataclass

from interp.gallery.comparing import USUAL, Tolerance

XIANG, OLSSON, ELHAGE = "S. Xiang (2024)", "Olsson et al. (2022)", "Elhage et al. (2021)"
LAND, GRIVAS = "Land and Bartolo (2024)", "Grivas et al. (2022)"
NONE = "no published counterpart"
MOST = 300_000  # bytes of a figure's JSON: a larger one is left out

SOURCES = {
    ELHAGE: "A Mathematical Framework for Transformer Circuits, https://transformer-circuits.pub/2021/framework/index.html",
    OLSSON: "In-context Learning and Induction Heads, https://arxiv.org/abs/2209.11895",
    "Wang et al. (2022)": "Interpretability in the Wild, https://arxiv.org/abs/2211.00593",
    "Zhang and Nanda (2023)": "Towards Best Practices of Activation Patching, https://arxiv.org/abs/2309.16042",
    "nostalgebraist (2020)": "interpreting GPT: the logit lens",
    XIANG: "Under-trained and Unused tokens in LLMs",
    LAND: "Fishing for Magikarp, https://arxiv.org/abs/2405.05417",
    GRIVAS: "Low-Rank Softmax Can Have Unargmaxable Classes in Theory but Rarely in Practice, https://arxiv.org/abs/2203.06462",
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure of a result: its name in `interp.figures`, what it shows, and which published figure it corresponds to."""

    name: str
    shows: str
    published: str = NONE


@dataclass(frozen=True)
class Entry:
    """A folder of the gallery: the words behind `interp` that make its result, and the figures that are kept of it.

    `left_out` names figures that the result has, and that the gallery does not show.
    """

    folder: str
    command: str
    figures: tuple[Figure, ...]
    left_out: tuple[str, ...] = ()
    tolerance: Tolerance = USUAL


_FITTED = Tolerance(atol=0.05, why="readers are fitted step by step, and rounding is carried from step to step")
_TRAINED = Tolerance(atol=0.05, why="rows are found by gradient descent, and rounding is carried from step to step")

_RANKED = Tolerance(
    ties=0.005, why="tokens that are as likely as each other within rounding change ranks with the last bit"
)

_POOLS = ("run argmaxability", "--pool unexposed --pool doses --pool ordinary")


def _causes(folder: str, options: str, who: str) -> Entry:
    """Verdicts on why tokens are not copied."""
    return Entry(
        folder,
        f"run glitch_attribution{options}",
        (
            Figure("deficit_shares", f"Which stage of copying is to blame, in nats, for what {who} lack of ordinary tokens."),
            Figure("identity_decomposition", f"What the model does not know of {who}: that one of a token's near-duplicates comes, or which of them; as it is, and repaired."),
            Figure("retrieval_by_layer", f"How often the residual stream says which token it is about, layer by layer: {who}, and as many ordinary tokens."),
        ),
        tolerance=_FITTED,
    )  # fmt: skip


def _ablation(folder: str, options: str, who: str) -> Entry:
    return Entry(
        folder,
        f"run head_ablation{options}",
        (
            Figure("head_losses", f"What each head alone is worth to the repeat of {who}, in nats.", f"the ablations of single heads of {OLSSON}"),
            Figure("ablation_curve", f"The heads of each kind ablated one by one more, beside as many heads called nothing, on {who}."),
        ),
    )  # fmt: skip


def _heads(folder: str, options: str, model: str) -> Entry:
    return Entry(
        folder,
        f"run induction_heads{options}",
        (
            Figure("head_scores", f"Where each head of {model} looks, by pool of tokens.", f"the prefix-matching scores by head of {OLSSON}"),
            Figure("matching_and_copying", f"Prefix matching against copying, a mark for each head of {model}; heads called induction heads are filled.", f"the plot of heads that match and copy of {ELHAGE}"),
            Figure("head_composition", f"How strongly later heads of {model} read what earlier ones write, over Gaussian matrices of the same shapes.", f"the composition scores of {ELHAGE}"),
        ),
    )  # fmt: skip


def _paths(folder: str, options: str, model: str) -> Entry:
    published = f"the path patching of Wang et al. (2022), drawn like the composition diagram of {ELHAGE}"
    shows = f"Which paths between heads of {model} carry the copy: lines as wide as the nats lost without them."
    return Entry(folder, f"run path_patching{options}", (Figure("path_strengths", shows, published),))


def _repair(folder: str, options: str, who: str) -> Entry:
    shows = f"Copying of {who} recovered by other embedding rows, against what they do to predictions on ordinary text."
    return Entry(folder, f"run embedding_repair{options}", (Figure("repair_damage", shows),), tolerance=_TRAINED)


def _margins(folder: str, options: str, model: str) -> Entry:
    shows = f"By how many logits each token of {model} can lead at most, by kind of token."
    published = f"{NONE}; the verdicts are those of {GRIVAS}"
    return Entry(folder, options.join(_POOLS), (Figure("margin_by_kind", shows, published),))


GALLERY: tuple[Entry, ...] = (
    Entry("repeated_tokens", "run repeated_tokens", (
        Figure("log_prob_by_position", "Log-prob of each position of a random block and its repeat, by pool of tokens: ordinary tokens are copied, unexposed ones are not.", f"the log-probs by position of {XIANG}"),
        Figure("halves", "The mean of the first half and of the second, a dot for each sequence.", f"the comparison of halves of {XIANG}"),
    ), tolerance=_RANKED),
    Entry("repeated_doses", "run repeated_tokens --pool doses --pool ordinary --length 10 --batch 160", (
        Figure("dose_response", "How often a token must have been trained on to be copied."),
    ), tolerance=_RANKED, left_out=("log_prob_by_position", "halves")),  # ten pools are too many for one picture
    Entry("attention_stripes", "run attention_stripes", (
        Figure("head_scores", "Where each head looks, by pool of tokens: on unexposed tokens the induction stripe fades.", f"the prefix-matching scores by head of {OLSSON}"),
    )),
    Entry("training_curve", "show interp/organisms/organism/curve.nc", (
        Figure("training_curve", "Copying of ordinary tokens appears all at once in training, with the induction head.", f"the phase change of {OLSSON}"),
    )),
    Entry("census", "census", (
        Figure("census", "How many tokens of each kind a text can produce.", f"{NONE}; the kinds are a finer version of the categories of {LAND}"),
    )),
    Entry("undertrained", "run undertrained", (
        Figure("indicator_against_probability", "What a token's embedding row says, against the largest probability that it is given when asked to be repeated.", f"the indicators against verified probabilities of {LAND}"),
        Figure("indicator_histogram", "The indicator by kind of token, with the null that is fitted to text and the threshold of the calls."),
        Figure("detection", "ROC, precision and recall of each indicator against the true exposure counts.", f"{NONE}: the truth about public models is not known"),
    ), tolerance=_RANKED),
    Entry("dose_response", "run dose_response", (
        Figure("exposure_response", "Copying, and the embedding rows, of every token against the times it was trained on."),
    ), tolerance=_RANKED),
    Entry("repeat_prompt", "run repeat_prompt --pool unexposed --pool control --sampling", (
        Figure("repeat_probability", "The probability of a token that a prompt asks to repeat, at each step of the answer.", f"the repeat prompt of {XIANG}"),
    ), tolerance=_RANKED),
    Entry("unused_logits", 'run unused_logits --pool unexposed --pool impossible-bytes --pool "control(unexposed)"', (
        Figure("largest_log_prob", "The most that each token is ever expected, over random contexts.", f"the largest logit of the unused tokens of {XIANG}"),
    ), tolerance=_RANKED),
    _heads("induction_heads", "", "`organism`"),
    _heads("induction_heads_llama", " --model organism-llama", "`organism-llama`"),
    _ablation("head_ablation", "", "blocks, on `organism`"),
    _ablation("head_ablation_untied", " --model organism-untied", "blocks, on `organism-untied`"),
    _ablation("head_ablation_llama", " --model organism-llama", "blocks, on `organism-llama`"),
    _ablation("head_ablation_mixed", " --mixed --pool unexposed --pool ordinary", "single tokens among ordinary ones, on `organism`"),
    Entry("activation_patching", "run activation_patching", (
        Figure("patched_positions", "What moves the last repeated token's log-prob when one layer at one position comes from a paired sequence.", "the heatmaps by layer and position of Zhang and Nanda (2023)"),
        Figure("patched_heads", "What moves the repeated tokens' log-prob when one head's output comes from a paired sequence.", "the patched heads of Zhang and Nanda (2023)"),
    )),
    _paths("path_patching", "", "`organism`"),
    _paths("path_patching_llama", " --model organism-llama", "`organism-llama`"),
    Entry("head_attribution", "run head_attribution", (
        Figure("attribution_agreement", "What gradients estimate that each head is worth, against what its ablation costs."),
    )),
    Entry("logit_attribution", "run logit_attribution", (
        Figure("attribution", "The logit of the right token that each component and each head writes.", f"the direct effects of heads on logits of {ELHAGE}"),
    )),
    Entry("logit_lens", "run logit_lens", (
        Figure("lens_by_layer", "After which layer the model knows the repeated token.", "the logit lens of nostalgebraist (2020)"),
    ), tolerance=_RANKED),
    Entry("attention_pattern", "run attention_pattern --length 10", (
        Figure("attention_view", "The attention of the called heads on one repeated block: the induction stripe, by pool of tokens.", f"the attention patterns on repeated random tokens of {OLSSON}"),
    )),
    _causes("glitch_attribution", "", "blocks of tokens of `organism`"),
    _causes("glitch_attribution_single", " --mixed", "single tokens among ordinary ones of `organism`"),
    _causes("glitch_attribution_untied", " --model organism-untied", "blocks of tokens of `organism-untied`"),
    _causes("glitch_attribution_untied_single", " --model organism-untied --mixed", "single tokens among ordinary ones of `organism-untied`"),
    _causes("glitch_attribution_llama", " --model organism-llama", "blocks of tokens of `organism-llama`"),
    _causes("glitch_attribution_llama_single", " --model organism-llama --mixed", "single tokens among ordinary ones of `organism-llama`"),
    _causes("glitch_attribution_doses", " --mixed --pool doses", "single canaries of each dose among ordinary tokens of `organism`"),
    _repair("embedding_repair", "", "blocks of unexposed tokens of `organism`"),
    _repair("embedding_repair_single", " --mixed", "single unexposed tokens of `organism`"),
    _repair("embedding_repair_untied", " --model organism-untied", "blocks of unexposed tokens of `organism-untied`"),
    _repair("embedding_repair_llama", " --model organism-llama", "blocks of unexposed tokens of `organism-llama`"),
    _margins("argmaxability", " ", "`organism`"),
    _margins("argmaxability_untied", " --model organism-untied ", "`organism-untied`"),
    _margins("argmaxability_llama", " --model organism-llama ", "`organism-llama`"),
)  # fmt: skip
