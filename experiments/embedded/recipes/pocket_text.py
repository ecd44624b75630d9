"""pocket_text: a Llama of 8 layers that answers questions about drawn documents of up to 1024 tokens.

The curriculum goes by what is learnt, not by steps: first to copy, which is how looking up begins, then to look up in
short texts, then in longer ones. It begins with four layers, which is where most is learnt for the time, and four that
add nothing at first come between them. From then on half of the batches forbid the questions to look at the
text in the first half of the layers, so that what a text says is bound together before it is asked for; asked earlier,
that kept questions over two sentences at one half (700 steps without a move). By answers alone questions over two
sentences, counts and kinds of words stayed at chance in the first of them (1400 steps), and a code's third digit was
taken from any code. So the phases behind it also tell, by throw-away heads, what is counted and whose value an answer
is: at the answer, which teaches kinds and digits within 500 steps, then from the asked name on, so that the city is
known behind six layers (200 steps), and then the second step of such questions is asked by itself, what a city sells,
in batches that let only the last two layers look for it (300 steps from chance to 93%). Counts are asked most at last.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from btp.models.embedded.pocket_text import build_text_model, build_text_tokenizer
from btp.tasks.pocketdocs.vocabulary import words
from experiments.embedded.pocket_text.data import SOLD, Encoder, collate, draw_copy, draw_docs
from experiments.embedded.pocket_text.losses import DEPTH, BindingHeads, text_losses
from experiments.embedded.recipe import Phase, Recipe

TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LOSSES = {"answer": 1.0, "key": 0.3, "home": 0.2, "before": 0.3}
BOUND = LOSSES | {"kin": 0.3, "times": 0.3, "hint": 0.5}
HOPS = BOUND | {"times": 1.0, "hint": 1.0}
WEIGHTS = {
    "needle": 1.0,
    "lookup": 3.0,
    "document": 2.0,
    "hop": 2.5,
    "latest": 2.0,
    "count": 1.5,
    "few_shot": 1.5,
    "recent": 1.0,
    "recite": 0.7,
}
LONG = {128: 0.1, 236: 0.4, 492: 0.4, 1004: 0.1}
STEPS = {"weights": WEIGHTS | {"hop": 3.5, SOLD: 2.5}, "late": 0.35, "deep": 0.35}
COUNTS = STEPS | {"weights": WEIGHTS | {"hop": 3.0, SOLD: 1.0, "count": 4.0}}
FIRST = (0, 2, 4, 6)  # layers of the first phases; the others begin by adding nothing
ALL = tuple(range(TEXT["num_hidden_layers"]))
LEAST = 4  # rows of a batch, however long its texts are


def _data(lengths: dict[int, float], questions: int, **more) -> dict:
    return {
        "lengths": lengths,
        "questions": questions,
        "weights": WEIGHTS,
        "tokens": 3072,
        "copies": 0.0,
        "layers": ALL,
    } | more


class PocketText(Recipe):
    """The recipe of the embedded text model."""

    name = "pocket_text"
    phases = (
        Phase(
            "copy",
            steps=8000,
            batch=16,
            rate=4e-3,
            losses=LOSSES,
            decay=0.0,
            until={"copy": 0.7},
            data=_data({40: 1.0}, 2, copies=0.5, string=20, parts=2, layers=FIRST),
        ),
        Phase(
            "short",
            steps=12000,
            batch=16,
            rate=4e-3,
            losses=LOSSES,
            decay=0.0,
            until={"lookup": 0.9, "document": 0.8},
            data=_data({48: 0.5, 72: 0.5}, 4, copies=0.125, string=40, parts=4, layers=FIRST),
        ),
        Phase(
            "medium",
            steps=12000,
            batch=16,
            rate=3e-3,
            losses=LOSSES,
            decay=0.0,
            until={"lookup": 0.88, "document": 0.9},
            data=_data({96: 0.3, 160: 0.4, 236: 0.3}, 10),
        ),
        Phase(
            "long",
            steps=1400,
            batch=16,
            rate=2.5e-3,
            losses=LOSSES,
            decay=0.0,
            data=_data(LONG, 12, late=0.5),
        ),
        Phase("bound", steps=800, batch=16, rate=2.5e-3, losses=BOUND, decay=0.0, data=_data(LONG, 12, late=0.5)),
        Phase(
            "asked", steps=900, batch=16, rate=2.5e-3, losses=HOPS, decay=0.0, data=_data(LONG, 12, late=0.5, tail=4)
        ),
        Phase("hops", steps=600, batch=16, rate=2.5e-3, losses=HOPS, decay=0.0, data=_data(LONG, 12, tail=4) | STEPS),
        Phase(
            "counts", steps=1000, batch=16, rate=2.5e-3, losses=HOPS, decay=0.5, data=_data(LONG, 12, tail=4) | COUNTS
        ),
    )

    def __init__(self):
        self.tokenizer = build_text_tokenizer(words())
        self.encode = Encoder(self.tokenizer.get_vocab())

    def build(self) -> nn.Module:
        """The model with random weights, and its heads."""
        model = build_text_model(self.tokenizer, TEXT)
        return nn.ModuleDict({"model": model, "heads": BindingHeads(TEXT["hidden_size"], len(self.tokenizer))})

    def trained(self, learner: nn.Module, phase: Phase) -> nn.Module:
        """All layers that take part, with embeddings and heads."""
        model = learner["model"].model
        layers = nn.ModuleList([model.layers[i] for i in phase.data["layers"]])
        rest = nn.ModuleList([model.embed_tokens, model.norm, learner["heads"]])
        return nn.ModuleDict({"layers": layers, "rest": rest})

    def begin(self, learner: nn.Module, phase: Phase) -> None:
        """Layers that have not taken part yet begin by adding nothing."""
        before = self.phases[max(self.phases.index(phase) - 1, 0)].data["layers"]
        for number, layer in enumerate(learner["model"].model.layers):
            if number not in before:
                nn.init.zeros_(layer.self_attn.o_proj.weight)
                nn.init.zeros_(layer.mlp.down_proj.weight)

    def draw(self, rng: np.random.Generator, phase: Phase) -> dict[str, Tensor]:
        """Texts of one length, as many as the batch's tokens allow, with strings to copy among them."""
        lengths = phase.data["lengths"]
        length = int(rng.choice(list(lengths), p=list(lengths.values())))
        rows = max(LEAST, min(phase.batch, phase.data["tokens"] // length))
        kind, late = rng.random(), phase.data.get("late", 0.0)
        copies = round(rows * phase.data["copies"])
        samples = [draw_copy(rng, self.encode, phase.data["string"], phase.data["parts"]) for _ in range(copies)]
        while len(samples) < rows:
            samples.append(self.sample(rng, phase, length))
        return collate(samples, phase.data.get("tail", 1)) | {
            "late": torch.tensor(kind < late),
            "deep": torch.tensor(late <= kind < late + phase.data.get("deep", 0.0)),
        }

    def sample(self, rng: np.random.Generator, phase: Phase, length: int = 236) -> dict:
        """A text with its questions."""
        drawn = {"parts": []}
        while not drawn["parts"]:
            drawn = draw_docs(rng, self.encode, length, phase.data["questions"], phase.data["weights"])
        return drawn

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """Texts of a batch."""
        return collate(samples)

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """What is answered, by ability, and what the heads tell."""
        early = DEPTH if batch["late"] else 0
        layers, deep = phase.data["layers"], bool(batch["deep"])
        return text_losses(learner["model"], learner["heads"], batch, layers=layers, early=early, deep=deep)

    def save(self, learner: nn.Module, folder: Path) -> None:
        """A Llama checkpoint with its tokenizer."""
        learner["model"].save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


RECIPE = PocketText()
