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
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig
    from transformers.models.deformable_detr.image_processing_pil_deformable_detr import DeformableDetrImageProcessorPil

    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DeformableDetrConfig(
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=20,
        num_feature_levels=3,
        id2label=LABELS,
    )
    return _save(folder, DeformableDetrForObjectDetection(config), DeformableDetrImageProcessorPil(size=SIZE))


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


def _plain_processor() -> object:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.25])


def _save(folder: Path, model: object, processor: object) -> Path:
    from vlbert_data.weights import quiet_transformers

    with quiet_transformers():
        model.save_pretrained(folder)  # type: ignore[attr-defined]
        processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder
