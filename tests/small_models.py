"""Small transformers models made from configuration, saved as a person has them; weights are random but fixed."""

from pathlib import Path

import torch

LABELS = {0: "cat", 1: "dog", 2: "hat", 3: "sofa", 4: "tree"}
SIZE = {"shortest_edge": 64, "longest_edge": 96}


def save_yolos(folder: Path) -> Path:
    """A detector with a softmax head and a logit for no object."""
    from transformers import YolosConfig, YolosForObjectDetection
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[64, 96],
        patch_size=16,
        num_detection_tokens=20,
        initializer_range=0.5,
        id2label=LABELS,
    )
    return _save(folder, YolosForObjectDetection(config), YolosImageProcessorPil(size=SIZE))


def save_deformable_detr(folder: Path) -> Path:
    """A detector with a sigmoid head."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
    from transformers.models.deformable_detr.image_processing_pil_deformable_detr import DeformableDetrImageProcessorPil

    torch.manual_seed(0)
    backbone = _small_resnet("stage2", "stage3", "stage4")
    config = DeformableDetrConfig(backbone_config=backbone, num_feature_levels=3, **DETR)
    return _save(folder, DeformableDetrForObjectDetection(config), DeformableDetrImageProcessorPil(size=SIZE))


# What transformers' detectors around a convolutional backbone have in common.
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 20,
    "id2label": LABELS,
}


def _small_resnet(*stages: str) -> object:
    from transformers import ResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    return ResNetConfig(**sizes, layer_type="basic", out_features=list(stages))


def save_detr(folder: Path) -> Path:
    """A detector with a softmax head on a convolutional backbone."""
    from transformers import DetrConfig, DetrForObjectDetection
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    torch.manual_seed(0)
    config = DetrConfig(backbone_config=_small_resnet("stage4"), **DETR)
    return _save(folder, DetrForObjectDetection(config), DetrImageProcessorPil(size=SIZE))


def save_table_transformer(folder: Path) -> Path:
    """The same for tables, with another order of norms."""
    from transformers import TableTransformerConfig, TableTransformerForObjectDetection
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    torch.manual_seed(0)
    config = TableTransformerConfig(backbone_config=_small_resnet("stage4"), **DETR)
    return _save(folder, TableTransformerForObjectDetection(config), DetrImageProcessorPil(size=SIZE))


def save_conditional_detr(folder: Path) -> Path:
    """A detector with a sigmoid head and a backbone of one map."""
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection
    from transformers.models.conditional_detr.image_processing_pil_conditional_detr import (
        ConditionalDetrImageProcessorPil,
    )

    torch.manual_seed(0)
    config = ConditionalDetrConfig(backbone_config=_small_resnet("stage4"), **DETR)
    return _save(folder, ConditionalDetrForObjectDetection(config), ConditionalDetrImageProcessorPil(size=SIZE))


def save_rt_detr(folder: Path) -> Path:
    """A detector with a sigmoid head that stretches every image to one size."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[32, 32, 32],
        decoder_n_points=2,
        num_denoising=0,
        **DETR,
    )
    return _save(folder, RTDetrForObjectDetection(config), RTDetrImageProcessorPil(size={"height": 96, "width": 96}))


def save_resnet(folder: Path) -> Path:
    """A convolutional backbone of stride 32 and 16 channels."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(1)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    return _save(folder, ResNetModel(config), _plain_processor())


def save_vit(folder: Path) -> Path:
    """A patch transformer of patch size 16 and width 12."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=64, patch_size=16
    )
    return _save(folder, ViTModel(config), _plain_processor())


def save_swin(folder: Path) -> Path:
    """A hierarchical transformer of stride 32 and width 32."""
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(3)
    config = SwinConfig(embed_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2, image_size=64)
    return _save(folder, SwinModel(config), _plain_processor())


PLAIN = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def save_convnext(folder: Path) -> Path:
    """A convolutional backbone of stride 32 that drops what does not fill a cell."""
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(4)
    config = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    return _save(folder, ConvNextModel(config), _plain_processor())


def save_deit(folder: Path) -> Path:
    """A patch transformer with two tokens, class and distillation, before the patches."""
    from transformers import DeiTConfig, DeiTModel

    torch.manual_seed(5)
    return _save(folder, DeiTModel(DeiTConfig(image_size=64, patch_size=16, **PLAIN)), _plain_processor())


def save_dinov2(folder: Path) -> Path:
    """A patch transformer of patch size 14 with four registers."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(6)
    config = Dinov2WithRegistersConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    return _save(folder, Dinov2WithRegistersModel(config), _plain_processor())


def save_dinov3_convnext(folder: Path) -> Path:
    """A convolutional backbone that gives its map as tokens after one for the whole image."""
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    torch.manual_seed(7)
    config = DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    return _save(folder, DINOv3ConvNextModel(config), _plain_processor())


def save_mobilenet(folder: Path) -> Path:
    """A convolutional backbone of stride 32 with padding as in TensorFlow."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    torch.manual_seed(8)
    config = MobileNetV2Config(depth_multiplier=0.35, initializer_range=0.3)
    return _save(folder, MobileNetV2Model(config), _plain_processor())


def save_hgnet(folder: Path) -> Path:
    """What transformers calls a backbone: a list of maps without a last state."""
    from transformers import HGNetV2Backbone, HGNetV2Config

    torch.manual_seed(9)
    config = HGNetV2Config(
        embedding_size=8,
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 8, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        initializer_range=0.3,
    )
    return _save(folder, HGNetV2Backbone(config), _plain_processor())


def save_pvt(folder: Path) -> Path:
    """A backbone that takes images of one size only."""
    from transformers import PvtConfig, PvtModel

    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
    return _save(folder, PvtModel(PvtConfig(image_size=64, **sizes)), _plain_processor())


def save_bert(folder: Path, *, vocab_size: int) -> Path:
    """A BERT with its heads, without a tokenizer."""
    from transformers import BertConfig, BertForPreTraining

    from vlbert_data.weights import quiet_transformers

    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    with quiet_transformers():
        BertForPreTraining(config).save_pretrained(folder)
    return folder


def _plain_processor() -> object:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.25])


def _save(folder: Path, model: object, processor: object) -> Path:
    from vlbert_data.weights import quiet_transformers

    with quiet_transformers():
        model.save_pretrained(folder)  # type: ignore[attr-defined]
        processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder
