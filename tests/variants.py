"""The table of networks that the contract of an architecture, and of an exported file, is checked on.

A row's values are the arguments of `helpers.make_config`. A new architecture adds its rows.
"""

import json

from helpers import ANCHORS, make_config

ULTRATINYOD = {
    "plain": {},
    "batchnorm": {"model": {"use_batchnorm": True}},
    "relu": {"model": {"activation": "relu"}},
    "residual": {"model": {"utod_residual": True}},
    "improved": {"model": {"use_improved_head": True}},
    "iou-aware": {"model": {"use_iou_aware_head": True}},
    "full head": {
        "model": {
            "use_improved_head": True,
            "use_iou_aware_head": True,
            "utod_head_ese": True,
            "utod_residual": True,
            "use_batchnorm": True,
        },
        "loss": {"iou_loss": "ciou"},
    },
    "ese": {"model": {"utod_head_ese": True}},
    "context": {"model": {"utod_context_rfb": True, "utod_context_dilation": 3}},
    "large objects": {"model": {"utod_large_obj_branch": True}},
    "large objects, deep": {
        "model": {"utod_large_obj_branch": True, "utod_large_obj_depth": 2, "utod_large_obj_ch_scale": 1.25}
    },
    "stride 4": {"model": {"output_stride": 4}},
    "stride 16": {"model": {"output_stride": 16}},
    "stride 16, residual": {"model": {"output_stride": 16, "utod_residual": True, "use_batchnorm": True}},
    "three classes": {"model": {"num_classes": 3}},
    "three classes, vfl": {"model": {"num_classes": 3, "use_improved_head": True}, "loss": {"anchor_cls_loss": "vfl"}},
    "one anchor": {"model": {"num_anchors": 1, "anchors": ((0.3, 0.6),)}},
    "not square": {"img_size": (96, 64)},
    "not square, large objects": {"img_size": (40, 72), "model": {"utod_large_obj_branch": True}},
    "vfl": {"loss": {"anchor_cls_loss": "vfl"}},
    "iou loss": {"loss": {"iou_loss": "iou"}},
    "legacy": {"assign": {"anchor_assigner": "legacy"}},
    "simota": {"assign": {"anchor_assigner": "simota"}},
    "legacy, quality": {"model": {"use_improved_head": True}, "assign": {"anchor_assigner": "legacy"}},
    "simota, iou-aware": {"model": {"use_iou_aware_head": True}, "assign": {"anchor_assigner": "simota"}},
    "quality power": {"model": {"use_improved_head": True, "quality_power": 0.5}},
    "adamw": {"model": {"use_batchnorm": True}, "optim": {"optimizer": "adamw", "lr": 0.01}},
    "ema": {"model": {"use_batchnorm": True, "use_improved_head": True}, "optim": {"use_ema": True}},
}

CENTERS = {
    "plain": {},
    "batchnorm": {"model": {"use_batchnorm": True}},
    "relu": {"model": {"activation": "relu"}},
    "stride 4": {"model": {"output_stride": 4}},
    "stride 8": {"model": {"output_stride": 8}},
    "skip": {"model": {"use_skip": True, "use_batchnorm": True}},
    "skip, stride 4": {"model": {"use_skip": True, "output_stride": 4}},
    "skip, wider last": {"model": {"use_skip": True, "last_width_scale": 1.5, "output_stride": 8}},
    "se": {"model": {"last_se": "se", "use_batchnorm": True}},
    "ese": {"model": {"last_se": "ese"}},
    "three classes": {"model": {"num_classes": 3, "output_stride": 8}},
    "not square": {"img_size": (96, 64), "model": {"output_stride": 8, "use_skip": True}},
    "ema": {"model": {"use_batchnorm": True}, "optim": {"use_ema": True}},
}

ANCHOR_HEADS = {
    "anchors": {},
    "anchors, batchnorm": {"model": {"use_batchnorm": True, "output_stride": 8}},
    "anchors, quality": {"model": {"use_improved_head": True}},
    "anchors, quality, ciou": {
        "model": {"use_improved_head": True, "quality_power": 0.5, "output_stride": 8},
        "loss": {"iou_loss": "ciou"},
    },
    "anchors, three classes, vfl": {"model": {"num_classes": 3}, "loss": {"anchor_cls_loss": "vfl"}},
    "anchors, legacy": {"assign": {"anchor_assigner": "legacy"}},
    "anchors, simota": {"assign": {"anchor_assigner": "simota"}, "model": {"output_stride": 4}},
    "anchors, full": {
        "model": {
            "use_skip": True,
            "last_se": "se",
            "last_width_scale": 1.25,
            "use_batchnorm": True,
            "num_anchors": 1,
            "anchors": ((0.3, 0.6),),
        }
    },
    "anchors, not square": {"img_size": (96, 64), "model": {"output_stride": 8}},
}

STAGES = {"backbone_channels": (4, 6, 6, 8), "backbone_blocks": (1, 1, 1, 1)}
RESNET = {"backbone": "ultratinyresnet", **STAGES}
BACKBONES = {
    "microcspnet": {"model": {"backbone": "microcspnet", "use_batchnorm": True}},
    "microcspnet, anchors": {"model": {"backbone": "microcspnet", "use_anchor": True, "use_batchnorm": True}},
    "resnet": {"model": RESNET},
    "resnet, anchors": {"model": {**RESNET, "use_anchor": True, "use_batchnorm": True}},
    "resnet, skip": {"model": {**RESNET, "backbone_skip": True}},
    "resnet, skip cat": {"model": {**RESNET, "backbone_skip_cat": True}},
    "resnet, skip shuffle": {"model": {**RESNET, "backbone_skip_shuffle_cat": True, "use_batchnorm": True}},
    "resnet, skip s2d": {"model": {**RESNET, "backbone_skip_s2d_cat": True}},
    "resnet, fpn, ese": {"model": {**RESNET, "backbone_fpn": True, "backbone_se": "ese", "use_batchnorm": True}},
    "resnet, stride 16": {"img_size": (96, 64), "model": {**RESNET, "backbone_out_stride": 16, "backbone_skip": True}},
    "shufflenet": {"model": {"backbone": "enhanced-shufflenet", "use_batchnorm": True}},
    "shufflenet, skip, se": {
        "model": {
            "backbone": "enhanced-shufflenet",
            "backbone_skip": True,
            "backbone_se": "se",
            "use_anchor": True,
            "use_batchnorm": True,
        }
    },
}

TRANSFORMERS = {
    "plain": {},
    "fpn": {"model": {"use_fpn": True}},
    "relu": {"model": {"activation": "relu", "layers": 2}},
    "three classes": {"model": {"num_classes": 3}},
    "one query": {"model": {"num_queries": 1}},
    "many queries": {"model": {"num_queries": 70, "heads": 1}},
    "dropout": {"model": {"dropout": 0.1}},
    "not square": {"img_size": (96, 64)},
    "odd size, fpn": {"img_size": (30, 21), "model": {"use_fpn": True}},
    "ema": {"optim": {"use_ema": True}},
}

NANODETS = {
    "plain": {},
    "medium, hardswish": {"model": {"nanodet_size": "m", "nanodet_act": "hardswish"}},
    "large, deep": {"model": {"nanodet_size": "l", "nanodet_depth": 3, "num_classes": 2}},
    "five grids, three classes": {"model": {"nanodet_strides": (4, 8, 16, 32, 64), "num_classes": 3}},
    "two grids, ghost residual, not square": {
        "img_size": (96, 64),
        "model": {"nanodet_strides": (8, 16), "ghost_block_type": "normal", "nanodet_kernel": 3},
        "optim": {"use_ema": True},
    },
}
BY_LEVEL = ((0.2, 0.3), (0.3, 0.6), (0.5, 0.7), (0.7, 0.8), (0.9, 0.9))
PUBLISHED = {"num_anchors": 3, "anchors": None, "tinyssd_levels": None, "tinyssd_priors": "published"}
SSDS = {
    "plain": {},
    "relu, mined": {"model": {"activation": "relu", "tinyssd_cls_loss": "mined"}},
    "one level, three anchors": {"model": {"tinyssd_levels": 1, "num_anchors": 3, "anchors": ANCHORS}},
    "published": {"model": PUBLISHED},
    "published, conv": {
        "model": {**PUBLISHED, "tinyssd_body": "conv", "tinyssd_cls_loss": "mined", "use_batchnorm": True}
    },
    "three classes, mined, not square": {
        "img_size": (96, 64),
        "model": {"num_classes": 3, "tinyssd_cls_loss": "mined"},
    },
    "odd levels": {
        "img_size": (72, 40),
        "model": {"tinyssd_levels": None, "tinyssd_body": "conv", "anchors": BY_LEVEL},
    },
}

VARIANTS = {
    **ULTRATINYOD,
    **{f"cnn, {name}": {"arch": "cnn", **row} for name, row in CENTERS.items()},
    **{
        f"cnn, {name}": {**row, "arch": "cnn", "model": {"use_anchor": True, **row.get("model", {})}}
        for name, row in ANCHOR_HEADS.items()
    },
    **{f"cnn, {name}": {"arch": "cnn", **row} for name, row in BACKBONES.items()},
    **{
        f"nanodet, {name}": {
            "arch": "nanodet",
            **row,
            "optim": {"optimizer": "adamw", "lr": 0.01, **row.get("optim", {})},
        }
        for name, row in NANODETS.items()
    },
    **{
        f"transformer, {name}": {"arch": "transformer", "img_size": (32, 32), **row}
        for name, row in TRANSFORMERS.items()
    },
    **{f"tinyssd, {name}": {"arch": "tinyssd", **row} for name, row in SSDS.items()},
}


def variant_config(name):
    """The Config of a row of VARIANTS, at 64x64 unless the row says otherwise."""
    values = {"img_size": (64, 64), **VARIANTS[name]}
    # Without batch norm, Adam's first steps on a fresh net are not monotonic; clipped SGD's are.
    return make_config(**{**values, "optim": {"optimizer": "sgd", "lr": 0.01, **values.get("optim", {})}})


def _network(name):
    cfg = variant_config(name)
    return json.dumps([cfg.to_dict()["model"], cfg.input.img_size])


NETWORKS = list({_network(name): name for name in reversed(VARIANTS)}.values())[::-1]
"""Rows whose networks differ: what is exported does not depend on how it is trained."""
