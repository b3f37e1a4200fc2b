"""Block weights: which tensor belongs where, and every way to write them."""

import pytest

from extensions_lib.errors import MergeError
from extensions_lib.merge.blocks import BLOCK_MAPS, block_of, parse_ratios

SD, XL = BLOCK_MAPS["sd1"], BLOCK_MAPS["sdxl"]
UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("name", "sd", "xl"),
    [
        (UNET + "input_blocks.0.0.weight", "IN00", "IN00"),
        (UNET + "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight", "IN08", "IN08"),
        (UNET + "input_blocks.11.0.in_layers.0.weight", "IN11", "BASE"),
        (UNET + "middle_block.1.proj_in.weight", "M00", "M00"),
        (UNET + "output_blocks.3.0.in_layers.0.weight", "OUT03", "OUT03"),
        (UNET + "time_embed.0.weight", "IN00", "IN00"),
        (UNET + "label_emb.0.0.weight", "IN00", "IN00"),
        (UNET + "out.2.bias", "OUT11", "OUT08"),
        ("first_stage_model.decoder.conv_in.weight", "VAE", "VAE"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "TE", "BASE"),
        ("cond_stage_model.model.ln_final.weight", "TE", "BASE"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "BASE", "TE1"),
        ("conditioner.embedders.1.model.ln_final.weight", "BASE", "TE2"),
        ("alphas_cumprod", "BASE", "BASE"),
    ],
)
def test_block_of_a_tensor(name, sd, xl):
    assert (block_of(name, SD), block_of(name, XL)) == (sd, xl)


def test_the_maps_have_the_published_numbers_of_blocks():
    assert (len(SD.preset), len(XL.preset)) == (26, 20)
    assert SD.preset[:3] == ("BASE", "IN00", "IN01") and SD.preset[13:15] == ("M00", "OUT00")
    assert BLOCK_MAPS["sd2"] is SD


def test_one_number_is_for_everything():
    assert set(parse_ratios("0.3", SD).by_block.values()) == {0.3}


def test_a_published_list_with_or_without_its_name():
    numbers = [i / 100 for i in range(26)]
    text = ",".join(str(number) for number in numbers)
    for written in (text, f"GRAD_V\t{text}", f"GRAD_V,{text}", f"PRESET_1 {text}", text.replace(",", "\n")):
        by_block = parse_ratios(written, SD).by_block
        assert [by_block[name] for name in SD.preset] == numbers, written
        assert by_block["TE"] == by_block["VAE"] == by_block["BASE"]


def test_lists_of_other_lengths_with_one_meaning():
    twenty_five = ",".join(str(i) for i in range(25))
    by_block = parse_ratios(f"{twenty_five}, BASE=0.5", SD).by_block
    assert (by_block["BASE"], by_block["IN00"], by_block["OUT11"]) == (0.5, 0.0, 24.0)
    by_block = parse_ratios(f"{twenty_five}, BASE=0.5", XL).by_block
    assert (by_block["IN08"], by_block["M00"], by_block["OUT00"], by_block["OUT08"]) == (8.0, 12.0, 13.0, 21.0)
    by_block = parse_ratios(",".join(str(i) for i in range(26)), XL).by_block
    assert (by_block["BASE"], by_block["IN08"], by_block["M00"], by_block["OUT08"]) == (0.0, 9.0, 13.0, 22.0)
    by_block = parse_ratios(",".join(str(i) for i in range(21)), XL).by_block
    assert (by_block["BASE"], by_block["OUT08"], by_block["VAE"], by_block["TE1"]) == (0.0, 19.0, 20.0, 0.0)


def test_a_list_without_base_says_so():
    with pytest.raises(MergeError, match="no ratio for BASE.*needs it apart, such as 'BASE=0'"):
        parse_ratios(",".join(["0"] * 25), SD)


@pytest.mark.parametrize(("count", "block_map"), [(17, SD), (12, XL)])
def test_lists_for_lora_files(count, block_map):
    text = ",".join(["0.5"] + ["1"] * (count - 1))
    with pytest.raises(MergeError, match="for LoRA files"):
        parse_ratios(text, block_map)
    by_block = parse_ratios(text, block_map, for_lora=True).by_block
    assert (by_block["BASE"], by_block["IN00"], by_block["IN04"], by_block["M00"]) == (0.5, 0.0, 1.0, 1.0)
    assert sum(by_block[name] for name in block_map.unet) == count - 1


def test_blocks_ranges_and_beginnings():
    by_block = parse_ratios("0.5; IN=0.1; IN04-IN08=0.2\nIN11-OUT01=0.7, out11=0.9, TE=0, M00=0.6", SD).by_block
    assert [by_block[f"IN{i:02}"] for i in range(12)] == [0.1] * 4 + [0.2] * 5 + [0.1] * 2 + [0.7]
    assert [by_block[name] for name in ("M00", "OUT00", "OUT01", "OUT02", "OUT11")] == [0.6, 0.7, 0.7, 0.5, 0.9]
    assert (by_block["TE"], by_block["VAE"], by_block["BASE"]) == (0.0, 0.5, 0.5)


def test_text_encoders_and_vae_follow_base_unless_told():
    by_block = parse_ratios("0.5, TE2=0.9, BASE=0.1", XL).by_block
    assert (by_block["TE1"], by_block["TE2"], by_block["VAE"]) == (0.1, 0.9, 0.1)
    by_block = parse_ratios("0.5, TE=0.2, UNET=1", XL).by_block
    assert (by_block["TE1"], by_block["TE2"], by_block["VAE"], by_block["M00"]) == (0.2, 0.2, 0.5, 1.0)


def test_expressions_of_layers():
    ratios = parse_ratios(r"0.5, attn2=1, IN04-IN08:attn2=0.2, OUT:/to_[kv]\.weight$/=0.3, /norm\d,?/=0", SD)
    block = "transformer_blocks.0."
    assert ratios.ratio(UNET + f"input_blocks.1.1.{block}attn2.to_q.weight") == 1.0
    assert ratios.ratio(UNET + f"input_blocks.4.1.{block}attn2.to_q.weight") == 0.2
    assert ratios.ratio(UNET + f"output_blocks.4.1.{block}attn1.to_k.weight") == 0.3
    assert ratios.ratio(UNET + f"output_blocks.4.1.{block}attn1.to_q.weight") == 0.5
    assert ratios.ratio(UNET + f"output_blocks.4.1.{block}norm2.weight") == 0.0
    assert ratios.ratio("first_stage_model.quant_conv.weight") == 0.5


def test_the_form_with_colons_only():
    ratios = parse_ratios("0, IN01-OUT02:attn:0.5, M00:1", SD)
    assert ratios.ratio(UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight") == 0.5
    assert ratios.ratio(UNET + "middle_block.0.in_layers.0.weight") == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "gives no ratio for BASE, IN00"),
        ("attn2=1", "Begin with a number for everything"),
        ("0.5, IN04", "'IN04', which cannot be read: it has no number at its end"),
        ("0.5, IN04=much", "'IN04=much'"),
        ("0.5, IN12=1", "'IN12' names no blocks of Stable Diffusion 1 and 2"),
        ("0.5, IN08-IN04=1", "'IN08-IN04' names no blocks"),
        ("0.5, /(/=1", "no regular expression"),
        ("0.5, XX:attn=1", "'XX' is no block"),
        ("0.1,0.2,0.3", "A list of 3 block weights does not fit"),
        ("nan", "cannot be read"),
        ("0.5, IN04=inf", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(text, said):
    with pytest.raises(MergeError) as caught:
        parse_ratios(text, SD)
    assert said in str(caught.value)


def test_sdxl_has_no_block_in11():
    with pytest.raises(MergeError, match="names no blocks of Stable Diffusion XL"):
        parse_ratios("0.5, IN09-IN11=1", XL)
