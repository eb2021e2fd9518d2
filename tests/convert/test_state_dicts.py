"""Reference names ↔ Flax trees: values, strictness, both directions, all published sizes."""

import logging

import jax
import numpy as np
import pytest

from eqjax import convert
from eqjax.convert import ConversionError, torch_archive
from eqjax.generator import Generator
from eqjax.tokenizer import Tokenizer
from tests import published_checkpoints, reference_weights

TOKENIZER = Tokenizer(**published_checkpoints.TOKENIZER_FIELDS)
GENERATOR = Generator(**published_checkpoints.GENERATOR_FIELDS)
WIDTH, DEPTH, HEADS, FLOW_WIDTH = 64, 4, 4, 48


@pytest.fixture(scope="module")
def lightning(tmp_path_factory):
    path = published_checkpoints.write_lightning(tmp_path_factory.mktemp("golden") / "tokenizer.ckpt")
    return torch_archive.load(path)["state_dict"]


@pytest.fixture(scope="module")
def tokenizer_state():
    return reference_weights.state_dict(published_checkpoints.raw_shapes())


@pytest.fixture(scope="module")
def generator_state():
    return dict(torch_archive.load(published_checkpoints.GENERATOR)["model_ema"])


def assert_same(out, expected):
    assert set(out) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(out[name], array, err_msg=name)


def never_run(name):
    return name.startswith(("semantic_decoder.down.0.block.1.", "semantic_decoder.down.1.block.1."))


# --- Files -------------------------------------------------------------------------------------------


def test_a_tokenizer_file_holds_ema_and_raw_weights(lightning):
    shapes = published_checkpoints.raw_shapes()
    assert_same(convert.ema_tokenizer_state_dict(lightning), reference_weights.state_dict(shapes))
    raw = convert.raw_tokenizer_state_dict(lightning)
    assert set(raw) - set(shapes) == {name for name in lightning if name.startswith("loss.")}
    assert_same({name: raw[name] for name in shapes}, reference_weights.state_dict(shapes, published_checkpoints.RAW))


def test_parts_without_ema_weights_are_taken_from_the_raw_ones(lightning, caplog):
    parts = ("ema_decoder.", "ema_post_quant_layer.")
    stage2 = {k: v for k, v in lightning.items() if not k.startswith("ema_") or k.startswith(parts)}
    stage2["ema_encoder.decay"] = np.float32(0.99)  # A counter is no weight.
    with caplog.at_level(logging.INFO, logger="absl"):
        out = convert.ema_tokenizer_state_dict(stage2)
    for name, array in out.items():
        salt = "" if name.startswith(("decoder.", "post_quant_layer.")) else published_checkpoints.RAW
        np.testing.assert_array_equal(array, reference_weights.weight(name, array.shape, salt), err_msg=name)
    assert "taken from the raw ones: encoder, semantic_decoder, quant_layer." in caplog.text


def test_ema_weights_that_do_not_match_the_raw_ones_are_refused(lightning, tokenizer_state):
    with pytest.raises(ConversionError, match="no EMA weights"):
        convert.ema_tokenizer_state_dict(tokenizer_state)
    with pytest.raises(
        ConversionError, match=r"encoder\.conv_in\.bias and encoder\.conv\._inbias .*use the raw weights"
    ):
        convert.ema_tokenizer_state_dict(lightning | {"encoder.conv._inbias": np.zeros(32)})
    odd = lightning | {"ema_encoder.extra": np.zeros(3)}
    del odd["ema_decoder.conv_outbias"]
    with pytest.raises(ConversionError) as error:
        convert.ema_tokenizer_state_dict(odd)
    assert "EMA weights without raw ones (1):\n  ema_encoder.extra" in str(error.value)
    assert "raw weights without EMA (1):\n  decoder.conv_out.bias" in str(error.value)
    del odd["ema_encoder.extra"]
    with pytest.raises(ConversionError, match=r"raw weights without EMA \(1\):\n  decoder.conv_out.bias"):
        convert.ema_tokenizer_state_dict(odd)


def test_full_files_hold_the_same_weights_as_raw_and_ema(tokenizer_state):
    full = convert.full_tokenizer_state_dict(tokenizer_state)
    assert set(full) == {name for name in published_checkpoints.lightning_shapes() if not name.startswith("loss.")}
    assert_same(convert.ema_tokenizer_state_dict(full), tokenizer_state)


def test_weights_are_picked_by_what_a_file_holds(lightning, tokenizer_state):
    checkpoint = torch_archive.load(published_checkpoints.GENERATOR)
    kind, ema, arguments = convert.pick_weights(checkpoint, "g.ckpt")
    assert kind == "generator" and ema is not checkpoint["model"] and arguments["model"] == "tiny_model"
    assert_same(ema, checkpoint["model_ema"])
    assert_same(convert.pick_weights(checkpoint, "g.ckpt", variant="raw")[1], checkpoint["model"])
    assert convert.pick_weights(checkpoint["model"], "g.ckpt")[::2] == ("generator", {})
    for holder in ({"state_dict": lightning}, lightning, tokenizer_state):
        kind, state, _ = convert.pick_weights(holder, "t.ckpt")
        assert kind == "tokenizer"
        assert_same(state, tokenizer_state)
    kind, raw, _ = convert.pick_weights({"state_dict": lightning}, "t.ckpt", variant="raw")
    np.testing.assert_array_equal(raw["quant_layer.bias"], lightning["quant_layer.bias"])


def test_files_without_the_weights_asked_for_are_errors(tokenizer_state):
    with pytest.raises(ConversionError, match=r"a\.ckpt is neither a tokenizer .* it holds \['features.0.weight'\]"):
        convert.pick_weights({"features.0.weight": np.zeros(3)}, "a.ckpt")
    with pytest.raises(ConversionError, match=r"a\.ckpt has no 'model_ema'; it holds \['model'\]"):
        convert.pick_weights({"model": {}}, "a.ckpt")
    with pytest.raises(ConversionError, match="a.ckpt holds list"):
        convert.pick_weights([], "a.ckpt")
    with pytest.raises(ConversionError, match="no EMA weights"):
        convert.pick_weights({"state_dict": tokenizer_state}, "a.ckpt")
    with pytest.raises(torch_archive.CheckpointFileError, match="a.ckpt: model_ema should map"):
        convert.pick_weights({"model_ema": torch_archive.Inert()}, "a.ckpt")


# --- Values ------------------------------------------------------------------------------------------


def test_tokenizer_arrays_land_where_they_belong(tokenizer_state):
    params = convert.tokenizer_params(tokenizer_state, TOKENIZER)
    assert set(params) == {"encoder", "decoder", "quant", "post_quant", "semantic_head"}
    conv = params["encoder"]["level2_block0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(conv[2, 0, 5, 7], tokenizer_state["encoder.down.2.block.0.conv1.weight"][7, 5, 2, 0])
    np.testing.assert_array_equal(params["quant"]["kernel"][2, 5, 7], tokenizer_state["quant_layer.weight"][7, 5, 2])
    for path, name in {
        "encoder/level1_down/conv/bias": "encoder.down.1.downsample.conv.conv.bias",
        "decoder/level1_up/conv/bias": "decoder.up.1.upsample.conv.conv.bias",
        "decoder/mid_block1/norm2/scale": "decoder.mid.block_2.norm2.weight",
        "decoder/mid_attention/query/bias": "decoder.mid.attn_1.q.bias",
        "encoder/mid_attention/key/bias": "encoder.mid.attn_1.k.bias",
        "encoder/level2_attention0/value/bias": "encoder.down.2.attn.0.v.bias",
        "decoder/level2_block1/conv2/bias": "decoder.up.2.block.1.conv2.bias",
        "encoder/columns/bias": "encoder.encoder1d.bias",
        "decoder/columns/bias": "decoder.decoder1d.bias",
        "semantic_head/level1_block0/norm1/bias": "semantic_decoder.down.1.block.0.norm1.bias",
    }.items():
        leaf = params
        for key in path.split("/"):
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf, tokenizer_state[name], err_msg=path)


def test_generator_arrays_land_where_they_belong(generator_state):
    params = convert.generator_params(generator_state, GENERATOR)
    head_dim, layer, head = WIDTH // HEADS, 2, 3
    rows = slice(head * head_dim, (head + 1) * head_dim)
    qkv, blocks = generator_state["encoder_blocks.2.attn.qkv.weight"], params["blocks"]
    for i in range(3):  # query, key, value
        part = qkv[i * WIDTH : (i + 1) * WIDTH][rows]
        np.testing.assert_array_equal(blocks["self_qkv"]["kernel"][layer, :, i, head], part.T)
    out = generator_state["encoder_blocks.2.attn2.proj.weight"]
    np.testing.assert_array_equal(blocks["cross_out"]["kernel"][layer, head], out[:, rows].T)
    for path, name in {
        "self_norm/scale": "norm1.weight",
        "self_out/bias": "attn.proj.bias",
        "cross_norm/bias": "cross_norm.bias",
        "cross_condition_norm/bias": "cross_cond_norm.bias",
        "cross_query/bias": "attn2.qkv.bias",
        "cross_key/bias": "attn2.k.bias",
        "cross_value/bias": "attn2.v.bias",
        "mlp_norm/scale": "norm2.weight",
        "mlp_in/bias": "mlp.fc1.bias",
    }.items():
        module, leaf = path.split("/")
        array = blocks[module][leaf][layer].reshape(-1)
        np.testing.assert_array_equal(array, generator_state["encoder_blocks.2." + name], err_msg=path)
    flow_block = params["flow_head"]["blocks_1"]
    np.testing.assert_array_equal(flow_block["mlp_in"]["bias"], generator_state["diffloss.net.res_blocks.1.mlp.0.bias"])
    np.testing.assert_array_equal(params["input_norm"]["bias"], generator_state["z_proj_ln.bias"])
    modulation = generator_state["diffloss.net.res_blocks.1.adaLN_modulation.1.weight"]
    for i in range(3):  # shift, scale, gate
        part = modulation[i * FLOW_WIDTH : (i + 1) * FLOW_WIDTH]
        np.testing.assert_array_equal(params["flow_head"]["modulation"]["kernel"][:, 1, i], part.T)
    np.testing.assert_array_equal(params["cond_positions"], generator_state["encoder_pos_embed_learned"][0])


def test_parameters_are_contiguous_float32_copies(generator_state):
    half = {name: array.astype(np.float16) for name, array in generator_state.items()}
    for leaf in jax.tree.leaves(convert.generator_params(half, GENERATOR)):
        assert leaf.dtype == np.float32 and leaf.flags.c_contiguous and leaf.flags.writeable


def test_round_trips_are_exact(tokenizer_state, generator_state):
    params = convert.generator_params(generator_state, GENERATOR)
    assert_same(convert.generator_state_dict(params, GENERATOR), generator_state)
    back = convert.tokenizer_state_dict(convert.tokenizer_params(tokenizer_state, TOKENIZER), TOKENIZER)
    assert_same(back, {k: np.zeros_like(v) if never_run(k) else v for k, v in tokenizer_state.items()})
    assert sum(map(never_run, tokenizer_state)) == 16


def test_trees_of_jax_arrays_export_as_numpy(generator_state):
    params = convert.generator_params(generator_state, GENERATOR)
    gradients = jax.tree.map(lambda a: jax.numpy.asarray(2 * a), params)
    out = convert.generator_state_dict(gradients, GENERATOR)
    assert all(isinstance(array, np.ndarray) for array in out.values())
    assert_same(out, {name: 2 * array for name, array in generator_state.items()})


# --- Strictness --------------------------------------------------------------------------------------


def test_one_error_lists_all_that_differs(generator_state):
    odd = dict(generator_state)
    odd["surprise.weight"] = np.zeros(3)
    odd["encoder_blocks.4.norm1.weight"] = np.zeros(WIDTH)
    odd["z_proj.weight"] = odd["z_proj.weight"].T
    del odd["encoder_norm.bias"]
    with pytest.raises(ConversionError) as error:
        convert.generator_params(odd, GENERATOR)
    message = str(error.value)
    assert "unknown in the source (2):\n  surprise.weight\n  encoder_blocks.4.norm1.weight" in message
    assert "missing in the source (1):\n  encoder_norm.bias (64,)" in message
    assert "of another shape (1):\n  z_proj.weight: source (16, 64), expected (64, 16)" in message


@pytest.mark.parametrize("change", ["unknown", "missing", "of another shape"])
def test_one_difference_alone_is_refused(generator_state, change):
    odd = dict(generator_state)
    if change == "unknown":
        odd["surprise.weight"] = np.zeros(3)
    elif change == "missing":
        del odd["encoder_norm.bias"]
    else:
        odd["encoder_norm.bias"] = np.zeros((8, 8))  # As many values, so that a reshape would hide it.
    with pytest.raises(ConversionError, match=rf"{change}.* \(1\):\n  \S+"):
        convert.generator_params(odd, GENERATOR)


def test_long_lists_are_whole():
    with pytest.raises(ConversionError, match=r"missing in the source \(133\):(?:\n  .*){133}$"):
        convert.generator_params({}, GENERATOR)


def test_export_is_strict_too(generator_state):
    params = convert.generator_params(generator_state, GENERATOR)
    params["extra"] = np.zeros(2)
    params["output_norm"] = {"scale": np.zeros(3)}
    with pytest.raises(ConversionError) as error:
        convert.generator_state_dict(params, GENERATOR)
    message = str(error.value)
    assert "unknown in the source (1):\n  extra" in message
    assert "missing in the source (1):\n  output_norm/bias (64,)" in message
    assert "output_norm/scale: source (3,), expected (64,)" in message


def test_only_known_names_may_be_left_over(lightning, tokenizer_state):
    beside = {name: array for name, array in lightning.items() if name.startswith("loss.") or name.endswith(".decay")}
    assert len(beside) == 8
    convert.tokenizer_params(tokenizer_state | beside, TOKENIZER)
    convert.tokenizer_params({k: v for k, v in tokenizer_state.items() if not never_run(k)}, TOKENIZER)
    with pytest.raises(ConversionError, match="ema_encoder.conv_inweight"):
        convert.tokenizer_params(lightning, TOKENIZER)
    beyond = "semantic_decoder.down.0.block.2.conv1.bias"
    with pytest.raises(ConversionError, match=beyond):
        convert.tokenizer_params(tokenizer_state | {beyond: np.zeros(64)}, TOKENIZER)


def test_a_tokenizer_may_leave_the_semantic_head_out(tokenizer_state):
    headless = TOKENIZER.clone(semantic=None)
    params = convert.tokenizer_params(tokenizer_state, headless)
    assert "semantic_head" not in params
    expected = {k: v for k, v in tokenizer_state.items() if not k.startswith("semantic_decoder.")}
    assert_same(convert.tokenizer_state_dict(params, headless), expected)


def test_tokenizers_without_a_counterpart_in_the_reference_are_refused(tokenizer_state):
    with pytest.raises(ConversionError, match="norm='pixel'"):
        convert.tokenizer_params(tokenizer_state, TOKENIZER.clone(norm="pixel"))
    with pytest.raises(ConversionError, match="refine_channels=4"):
        convert.tokenizer_state_dict({}, TOKENIZER.clone(refine_channels=4))
    windowed = TOKENIZER.clone(attention_window=2)
    params = convert.tokenizer_params(tokenizer_state, windowed)
    with pytest.raises(ConversionError, match="attention_window=2"):
        convert.tokenizer_state_dict(params, windowed)
    for field, other in (
        ("padding", TOKENIZER.clone(padding="circular")),
        ("resample", TOKENIZER.clone(resample="kaiser")),
    ):
        with pytest.raises(ConversionError, match=f"only {field}='[a-z]+' can be exported"):
            convert.tokenizer_state_dict(params, other)


def test_a_generator_without_a_counterpart_in_the_reference_is_not_exported(generator_state):
    blind = GENERATOR.clone(cross_rope=False)
    params = convert.generator_params(generator_state, blind)  # To train it on from published weights.
    with pytest.raises(ConversionError, match="cross_rope=False"):
        convert.generator_state_dict(params, blind)


# --- Configurations and full sizes -------------------------------------------------------------------


def test_configurations_are_inferred_from_shapes(tokenizer_state, generator_state):
    assert convert.infer_tokenizer_config(tokenizer_state) == published_checkpoints.TOKENIZER_FIELDS
    fields = convert.infer_generator_config(generator_state, num_heads=HEADS)
    assert fields == published_checkpoints.GENERATOR_FIELDS
    headless = {k: v for k, v in tokenizer_state.items() if not k.startswith("semantic_decoder.")}
    assert convert.infer_tokenizer_config(headless)["semantic"] is None


def test_heads_and_window_come_from_arguments_or_published_sizes(generator_state):
    with pytest.raises(ConversionError, match="give num_heads"):
        convert.infer_generator_config(generator_state)

    def window(arguments=None, **given):
        return convert.infer_generator_config(generator_state, arguments, num_heads=HEADS, **given)["window_size"]

    assert window() == window({"cond_length": "?"}) == 4
    assert window({"cond_length": 7}) == 8
    assert window({"cond_length": 7}, window_size=3) == 3
    assert window({"cond_length": 0}) is None and window(window_size=0) is None


def test_other_state_dicts_have_no_configuration(tokenizer_state, generator_state):
    with pytest.raises(ConversionError, match="not the state_dict of a tokenizer"):
        convert.infer_tokenizer_config(generator_state)
    with pytest.raises(ConversionError, match="not the state_dict of a generator"):
        convert.infer_generator_config(tokenizer_state)
    odd = tokenizer_state | {"encoder.down.0.downsample.conv.conv.weight": np.zeros((32, 32, 3, 3))}
    with pytest.raises(ConversionError, match=r"narrow by \[1.0, 2.0\]"):
        convert.infer_tokenizer_config(odd)


def structs(shapes):
    return {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, shape in shapes.items()}


def shapes_of(tree):
    return {name: leaf.shape for name, leaf in tree.items()}


@pytest.mark.parametrize(
    ("name", "heads", "millions"),
    [
        ("small_1000", 8, 127.3),
        ("base_1000", 12, 295.6),
        ("large_1000", 16, 644.5),
        ("large_30", 16, 643.5),
        ("huge_1000", 16, 1203.2),
    ],
)
def test_every_array_of_the_published_generators_converts(name, heads, millions):
    state = structs(published_checkpoints.read_json("manifests.json.gz")[f"generator_{name}"])
    fields = convert.infer_generator_config(state)
    assert (fields["num_heads"], fields["num_cond_tokens"], fields["flow_depth"]) == (heads, 16, 12)
    generator = Generator(**fields)
    params = jax.eval_shape(lambda state: convert.generator_params(state, generator), state)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, 1) == millions
    back = jax.eval_shape(lambda params: convert.generator_state_dict(params, generator), params)
    assert shapes_of(back) == shapes_of(state)


def test_every_array_of_the_published_tokenizer_converts():
    manifests = published_checkpoints.read_json("manifests.json.gz")
    raw = structs(manifests["tokenizer"])
    ema = convert.ema_tokenizer_state_dict(raw | structs(manifests["tokenizer_ema"]))
    assert shapes_of(ema) == shapes_of(raw)
    fields = convert.infer_tokenizer_config(ema)
    semantic = fields.pop("semantic")
    # The published head is written (64, (8, 12)); these are the same widths.
    assert semantic == dict(channels=256, channel_multipliers=(2, 3), num_res_blocks=2, out_channels=768, downsamples=0)
    defaults = Tokenizer()
    assert fields == {name: getattr(defaults, name) for name in fields}
    tokenizer = Tokenizer(**fields, semantic=semantic)
    params = jax.eval_shape(lambda state: convert.tokenizer_params(state, tokenizer), ema)
    back = jax.eval_shape(lambda params: convert.tokenizer_state_dict(params, tokenizer), params)
    assert shapes_of(back) == shapes_of(raw)
    full = convert.full_tokenizer_state_dict(back)
    assert set(full) - set(raw) == set(manifests["tokenizer_ema"])
