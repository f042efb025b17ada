"""A model, a tokenizer, a task and data of your own, as objects: a run like any other.

The model is a tiny random Llama and the tokenizer knows a dozen words, so that the example needs
nothing from a hub; yours may be any causal language model of transformers.
"""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import hiso

OUT = "runs/own"
TASK = hiso.Task(
    name="stars",
    template="{review} it was",
    labels=(" bad", " good"),
    label_column="stars",
    classes=("one", "five"),
)
TEXT = "<unk> </s> the film plot acting was dull awful fine lovely it bad good"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = {word: number for number, word in enumerate(TEXT.split())}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


def make_model() -> LlamaForCausalLM:
    """Two layers, with the same weights every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TEXT.split()),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    )


def make_rows() -> list[dict[str, str]]:
    """Reviews, all different, with their stars."""
    nouns, kinds = (
        ("film", "plot", "acting"),
        {"one": ("dull", "awful"), "five": ("fine", "lovely")},
    )
    return [
        {"review": f"the {noun} was {first} the {other} was {second}", "stars": stars}
        for stars, words in kinds.items()
        for noun in nouns
        for other in nouns
        for first in words
        for second in words
    ]


def main() -> None:
    """Trains; opens the run again; lets the trained model write."""
    model, tokenizer, rows = make_model(), make_tokenizer(), make_rows()
    summary = hiso.simulate(
        out=OUT,
        model=model,
        tokenizer=tokenizer,
        task=TASK,
        data=rows,
        method=hiso.HiSo(lr=1e-2),
        clients=3,
        sample=2,
        rounds=60,
        batch_size=8,
        max_length=16,
        eval_every=20,
    )
    print(f"accuracy {summary['accuracy_before']:.2f} -> {summary['accuracy_after']:.2f}")

    run = hiso.open_run(OUT, model=model, tokenizer=tokenizer)
    tuned = run.metrics
    print(tuned[tuned["split"] == "dev"][["position", "loss", "accuracy"]].to_string(index=False))
    ids = tokenizer("the film was lovely the plot was fine it was", return_tensors="pt").input_ids
    written = run.model.generate(ids, max_new_tokens=1, do_sample=False)
    print(tokenizer.decode(written[0]))


if __name__ == "__main__":
    main()
