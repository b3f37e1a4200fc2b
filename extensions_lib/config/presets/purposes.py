"""Start values by purpose, for Stable Diffusion 1 (512 px, noise prediction); `families` says what others need.

A preset is a partial job. `like` names one whose values it has where it says nothing itself. Numbers follow what the
trainers that people use agree on; the scale of a LoRA's steps is learning rate x alpha / rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .because import Because


@dataclass(frozen=True)
class Purpose:
    """What a preset gives, over what the one it is `like` gives."""

    values: Mapping[str, Any] = field(default_factory=dict)
    like: str = ""


_QUICK = "a quarter of the samples at twice the rate shows whether the pictures are right"
_NO_DECAY = "decay pulls new vectors to zero, which no word of the model is near"
_WEBUI = "as the WebUI's own Train tab, so that recipes written for it transfer"

PURPOSES: dict[str, Purpose] = {
    "lora_character": Purpose(
        {
            "method": {
                "kind": "lora",
                "rank": Because(16, "holds a face and its clothes; what more holds is mostly the backgrounds"),
                "alpha": Because(8.0, "half the rank: with this rate the steps are of the usual size, 1e-4"),
                "train_text_encoder": Because(True, "the word is learnt sooner, and SD 1's text encoder is small"),
                "text_encoder_learning_rate": Because(5e-5, "a quarter of the UNet's: it forgets other words faster"),
            },
            "optimizer": {
                "learning_rate": Because(2e-4, "the middle of what trainers use for SD 1"),
                "lr_scheduler": Because("cosine", "the small steps at the end settle the details"),
                "lr_warmup_ratio": Because(0.05, "the optimizer's averages need a few steps to be right"),
            },
            "training": {
                "num_samples": Because(2400, "what 20 to 40 pictures of one person bear before they are copied"),
                "train_batch_size": Because(2, "evens out the noise levels a little for little memory"),
                "loss_weighting": Because("min_snr", "easy and hard noise levels learn at the same pace"),
            },
        }
    ),
    "lora_object": Purpose(
        {"training": {"num_samples": Because(1600, "a thing looks the same more often than a face does")}},
        like="lora_character",
    ),
    "lora_style": Purpose(
        {
            "method": {
                "rank": Because(32, "a style is in more layers than a face"),
                "alpha": Because(16.0, "half the rank, as for a character"),
                "text_encoder_learning_rate": Because(2e-5, "a style should hang on the pictures, not on the words"),
            },
            "optimizer": {"learning_rate": Because(1e-4, "half of a character's: more pictures, seen more often")},
            "training": {
                "num_samples": Because(4000, "30 pictures or more, each seen some hundred times"),
                "train_batch_size": Because(4, "a step should see more than one motif"),
            },
            "dataset": {"caption_dropout_rate": Because(0.05, "a style should not hang on the captions")},
        },
        like="lora_character",
    ),
    "lora_loha": Purpose(
        {
            "method": {
                "algorithm": Because("loha", "its rank counts squared: more can change with as many numbers"),
                "rank": Because(8, "8 by 8: as much as a LoRA of 64 could change"),
                "alpha": Because(4.0, "half the rank, as for a LoRA"),
            }
        },
        like="lora_character",
    ),
    "lora_lokr": Purpose(
        {
            "method": {
                "algorithm": Because("lokr", "the smallest files, and a change of full rank"),
                "lokr_whole": Because(True, "the large matrix stays whole; only its pattern repeats"),
                "lokr_factor": Because(8, "lower learns more and gives larger files; 4 to 16 are usual"),
            }
        },
        like="lora_character",
    ),
    "lora_quick_look": Purpose(
        {
            "method": {
                "rank": Because(8, "enough to see a likeness"),
                "alpha": Because(8.0, "the whole rank: larger steps"),
                "train_text_encoder": Because(False, "the pictures alone are looked at"),
            },
            "optimizer": {"learning_rate": Because(4e-4, _QUICK)},
            "training": {"num_samples": Because(600, _QUICK)},
        },
        like="lora_character",
    ),
    "embedding_subject": Purpose(
        {
            "method": {
                "kind": "textual_inversion",
                "vectors_per_token": Because(4, "one vector holds a kind of thing, four hold one thing of its kind"),
            },
            "optimizer": {
                "learning_rate": Because(2e-3, "a seventh of a word's size per step and number"),
                "lr_scheduler": Because("cosine", "the small steps at the end settle the details"),
                "min_lr_ratio": Because(0.1, "the last steps still move the vectors"),
                "weight_decay": Because(0.0, _NO_DECAY),
            },
            "training": {
                "num_samples": Because(6000, "a few numbers learn slowly: 1500 steps of four pictures"),
                "train_batch_size": Because(4, "the direction from one picture is mostly noise"),
            },
        }
    ),
    "embedding_style": Purpose(
        {
            "method": {
                "vectors_per_token": Because(8, "a style needs more words than a thing"),
                "initializer_text": Because("style", "a start among the words that change how a picture looks"),
            },
            "optimizer": {"learning_rate": Because(1e-3, "half of a subject's: more vectors share the change")},
            "training": {"num_samples": Because(10000, "more vectors need more pictures")},
            "dataset": {"caption_template": Because("style_filewords", "sentences that say 'in the style of'")},
        },
        like="embedding_subject",
    ),
    "embedding_negative": Purpose(
        {
            "method": {
                "vectors_per_token": Because(8, "a fault is a manner rather than a thing"),
                "initializer_text": Because("bad quality", "a start near what it is to become"),
                "is_negative": Because(True, "the word goes into the negative prompt"),
            },
            "optimizer": {"learning_rate": Because(1e-3, "as for a style")},
        },
        like="embedding_subject",
    ),
    "embedding_quick_look": Purpose(
        {
            "optimizer": {"learning_rate": Because(4e-3, "twice the rate shows sooner whether the pictures are right")},
            "training": {"num_samples": Because(1200, "a fifth: whether pictures and captions are right, not more")},
        },
        like="embedding_subject",
    ),
    "embedding_webui": Purpose(
        {
            "method": {
                "kind": "textual_inversion",
                "vectors_per_token": Because(1, _WEBUI),
                "initializer_text": Because("*", _WEBUI),
            },
            "optimizer": {
                "learning_rate": Because("5e-3:200, 1e-3:1000, 5e-4", _WEBUI),
                "lr_warmup_ratio": Because(0.0, _WEBUI),
                "weight_decay": Because(0.0, _WEBUI),
            },
            "training": {
                "num_samples": Because(2000, "the WebUI's 100000 steps are stopped by hand; this is where most stop"),
                "train_batch_size": Because(1, _WEBUI),
                "max_grad_norm": Because(0.0, _WEBUI),
            },
            "dataset": {"caption_template": Because("subject_filewords", _WEBUI)},
            "output": {"file_format": Because("pt", "its Train tab can go on from it")},
        }
    ),
    "pivotal_character": Purpose(
        {
            "method": {
                "kind": "pivotal",
                "train_text_encoder": Because(False, "the vectors of the word take its part"),
                "embedding_until": Because(0.5, "the vectors find what the subject is near; the LoRA adds the rest"),
            },
            "optimizer": {"weight_decay": Because(0.0, _NO_DECAY)},
        },
        like="lora_character",
    ),
    "dreambooth_face": Purpose(
        {
            "method": {
                "kind": "dreambooth",
                "train_text_encoder": Because(True, "the word is learnt sooner, and SD 1's text encoder is small"),
                "text_encoder_learning_rate": Because(1e-6, "the UNet's rate; more and other words are forgotten"),
                "text_encoder_until": Because(0.3, "long enough for the word; longer makes all pictures alike"),
            },
            "optimizer": {
                "learning_rate": Because(1e-6, "a hundredth of a LoRA's: every number of the model moves"),
                "lr_scheduler": Because("constant_with_warmup", "a run may be stopped at any step and be good there"),
                "lr_warmup_ratio": Because(0.05, "the optimizer's averages need a few steps to be right"),
            },
            "training": {
                "num_samples": Because(2000, "1000 steps of two: where faces are learnt and not yet copied"),
                "train_batch_size": Because(2, "evens out the noise levels a little; one needs less memory"),
                "state_every_steps": Because(200, "a state holds the whole model and its averages"),
            },
            "prior": {
                "prior_loss_weight": Because(1.0, "the class counts as much as the subject, once it is told"),
                "num_class_images": Because(200, "ten for each picture of the subject: none is learnt by heart"),
            },
        }
    ),
    "dreambooth_object": Purpose(
        {
            "optimizer": {"learning_rate": Because(2e-6, "things bear more than faces, whose smallest changes show")},
            "training": {"num_samples": Because(1200, "a thing looks the same more often than a face does")},
        },
        like="dreambooth_face",
    ),
    "hypernetwork_style": Purpose(
        {
            "method": {
                "kind": "hypernetwork",
                "layer_structure": Because("1, 2, 1", _WEBUI),
                "activation": Because("swish", "smooth, and what most hypernetworks were made with"),
            },
            "optimizer": {
                "learning_rate": Because(1e-5, "the rate of the WebUI's own Train tab"),
                "lr_scheduler": Because("cosine", "the small steps at the end settle the details"),
                "lr_warmup_ratio": Because(0.05, "the optimizer's averages need a few steps to be right"),
                "weight_decay": Because(0.0, "decay pulls the networks back to doing nothing"),
            },
            "training": {
                "num_samples": Because(5000, "the WebUI's 100000 steps are twenty times what one style needs"),
                "train_batch_size": Because(1, _WEBUI),
            },
            "dataset": {"caption_template": Because("style_filewords", "sentences that say 'in the style of'")},
        }
    ),
}
