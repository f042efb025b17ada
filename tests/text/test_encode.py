import dataclasses
from itertools import product

import numpy as np
import pytest

from hiso.data.batches import Shard
from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.encode import Encoded, encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.tasks import get_task
from hiso.workloads.text.verbalizer import tokens

SST2, TEXT = get_task("sst2"), get_task("text")
LONG = Example("What a terrible plot, it was very bad and very long. " * 20 + "It was", 0)


def numbered(count):
    return [Encoded(np.array([i], np.int32), i % 2) for i in range(count)]


def members(batch):
    return [int(e.ids[0]) for e in batch.examples]


def test_a_batch_is_a_pure_function_of_its_coordinates():
    shard, again = Shard(3, numbered(100), 8, seed=5), Shard(3, numbered(100), 8, seed=5)
    for round, step in [(7, 2), (0, 0), (7, 2)]:
        assert members(shard.batch(round, step)) == members(again.batch(round, step))
    assert shard.batch(0, 0).client == 3


def test_batches_differ_with_each_coordinate():
    drawn = {
        tuple(members(Shard(client, numbered(100), 8, seed).batch(round, step)))
        for seed, client, round, step in product(range(3), repeat=4)
    }
    assert len(drawn) == 3**4


def test_a_batch_has_different_examples_and_reaches_all_of_them():
    shard = Shard(0, numbered(20), 8, seed=0)
    seen = set()
    for round in range(40):
        batch = members(shard.batch(round, 0))
        assert len(set(batch)) == len(batch) == 8
        seen.update(batch)
    assert seen == set(range(20))


def test_a_small_shard_is_one_batch():
    shard = Shard(0, numbered(3), 8, seed=0)
    assert shard.examples == 3
    assert members(shard.batch(0, 0)) == [0, 1, 2]


def test_an_empty_shard_or_batch_is_refused():
    with pytest.raises(SettingsError, match="client 4 has no examples"):
        Shard(4, [], 8, seed=0)
    with pytest.raises(SettingsError, match="batch_size is 0"):
        Shard(4, numbered(3), 0, seed=0)


def test_shards_share_their_examples():
    everything = numbered(600)
    shards = [Shard(i, everything[i : i + 1], 8, seed=0) for i in range(600)]
    assert all(
        shard.batch(0, 0).examples[0] is e for shard, e in zip(shards, everything, strict=True)
    )


def test_long_prompts_lose_their_start_and_keep_their_end(llama, opt):
    for lm, before in ((llama, []), (opt, [0])):
        ids = encode([LONG], SST2, lm.tokenizer, 24)[0].ids
        whole = tokens(lm.tokenizer, LONG.prompt)
        assert ids.tolist() == before + whole[len(before) - 24 :]
        assert lm.tokenizer.decode(ids[-3:]).endswith("It was")
        assert ids.dtype == np.int32


def test_short_prompts_are_whole(opt):
    encoded = encode([Example("The film was great. It was", 1), LONG], SST2, opt.tokenizer, 64)
    assert encoded[0].ids.tolist() == [0, *tokens(opt.tokenizer, "The film was great. It was")]
    assert [e.label for e in encoded] == [1, 0]
    assert encode([], SST2, opt.tokenizer, 64) == []


def test_labels_of_several_tokens_count_towards_the_length(llama):
    task = dataclasses.replace(SST2, labels=(" very bad", " very good"))
    assert len(encode([LONG], task, llama.tokenizer, 24)[0].ids) == 22


def test_no_room_for_the_text_is_refused(llama):
    with pytest.raises(SettingsError, match=r"max_length 2 leaves no room.*takes 2 tokens"):
        encode([LONG], SST2, llama.tokenizer, 2)
    with pytest.raises(SettingsError, match="2 tokens or more"):
        encode([LONG], TEXT, llama.tokenizer, 1)


def test_free_text_ends_with_the_end_token_unless_it_is_cut(llama, opt):
    text = Example("The film was great.", None)
    ids = tokens(llama.tokenizer, text.prompt)
    assert encode([text], TEXT, llama.tokenizer, 64)[0].ids.tolist() == [*ids, 1]
    assert encode([text], TEXT, opt.tokenizer, 64)[0].ids.tolist() == [0, *ids, 1]
    assert encode([text], TEXT, opt.tokenizer, 3)[0].ids.tolist() == [0, *ids[:2]]
    assert encode([text], TEXT, opt.tokenizer, 3)[0].label is None


def test_free_text_without_anything_to_predict_is_refused(llama):
    with pytest.raises(LoadError, match=r"1 example\(s\).*''"):
        encode([Example("fine words", None), Example("", None)], TEXT, llama.tokenizer, 8)
