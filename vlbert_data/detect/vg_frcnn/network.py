"""The network: ResNet-101-C4 with an RPN, RoIPool, a dilated res5 and heads for class, box and attribute.

Promise: the parameters have the names and shapes of the Hugging Face port of this detector, so its weights load as
they are. Inference only. After `fold_norms` the batch norms are part of the convolutions.

Letters in shapes: N images, H x W positions of the res4 map (stride 16), A anchors, R RoIs, C object classes.
Source: Anderson et al., Bottom-Up and Top-Down Attention, CVPR 2018 (arXiv 1707.07998); He et al., CVPR 2016.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbert_data.detect.roi_pool import roi_pool_parts
from vlbert_data.detect.vg_frcnn.proposals import cell_anchors

STRIDE_PX = 16
# Fewer pixels leave nothing after the stem.
SMALLEST_SIDE_PX = 3
POOLED_SIZE = 14
# RoIs that go through res5 together: 16 x 2048 x 14 x 14 float32 are 26 MB, which a processor's cache just holds.
ROIS_A_PART_CPU = 16
ROIS_A_PART_CUDA = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSize:
    """How large a network is; the published one by default. num_attributes: 0 for weights without attribute head.

    width: channels of the stem; all others are multiples. num_blocks: bottlenecks of res2, res3, res4, res5.
    """

    num_classes: int = 1600
    num_attributes: int = 400
    width: int = 64
    num_blocks: tuple[int, int, int, int] = (3, 4, 23, 3)

    @property
    def feature_dim(self) -> int:
        """Return the channels of res5."""
        return 32 * self.width


PUBLISHED_SIZE = NetworkSize()


class ConvNorm(nn.Conv2d):
    """A convolution without bias and its batch norm, named `norm` inside it as the published weights have it."""

    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (size // 2)
        super().__init__(inputs, outputs, size, stride=stride, padding=padding, dilation=dilation, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, H', W'] of x [N, inputs, H, W]."""
        normed: Tensor = self.norm(super().forward(x))
        return normed

    def fold_norm(self) -> None:
        """Scale the weights and add a bias such that the batch norm is no longer needed; computed in float64."""
        norm = self.norm
        assert isinstance(norm, nn.BatchNorm2d), "a norm is folded once"
        assert norm.running_mean is not None and norm.running_var is not None, "a batch norm with statistics"
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # [outputs]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        weight = self.weight.double() * scale[:, None, None, None]
        self.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(self.weight.dtype), requires_grad=False)
        self.norm = nn.Identity()


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut; the stride is in the first 1x1, as in Caffe's ResNet."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        middle = outputs // 4
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride) if inputs != outputs else None
        self.conv1 = ConvNorm(inputs, middle, 1, stride=stride)
        self.conv2 = ConvNorm(middle, middle, 3, dilation=dilation)
        self.conv3 = ConvNorm(middle, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, H / stride, W / stride] of x [N, inputs, H, W]."""
        y = functional.relu_(self.conv1(x))
        y = functional.relu_(self.conv2(y))
        y = self.conv3(y)
        y += x if self.shortcut is None else self.shortcut(x)
        return functional.relu_(y)


def stage(num_blocks: int, inputs: int, outputs: int, *, stride: int, dilation: int = 1) -> nn.Sequential:
    """Return bottlenecks in a row, the first of which changes width and size."""
    first = Bottleneck(inputs, outputs, stride=stride, dilation=dilation)
    return nn.Sequential(first, *(Bottleneck(outputs, outputs, dilation=dilation) for _ in range(num_blocks - 1)))


class Stem(nn.Module):
    """The first convolution and max pooling, together stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, width, 7, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 64, H / 4, W / 4] of x [N, 3, H, W]."""
        return self.pool(functional.relu_(self.conv1(x)))

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Return [N, 64, H / 2, W / 2] of x [N, 64, H, W]; Caffe pools without padding and keeps what sticks out."""
        return functional.max_pool2d(x, 3, stride=2, ceil_mode=True)


class Backbone(nn.Module):
    """ResNet-101 up to res4."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        width, blocks = size.width, size.num_blocks
        self.stem = Stem(width)
        self.res2 = stage(blocks[0], width, 4 * width, stride=1)
        self.res3 = stage(blocks[1], 4 * width, 8 * width, stride=2)
        self.res4 = stage(blocks[2], 8 * width, 16 * width, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the res4 map [N, 1024, H, W] of preprocessed images [N, 3, 16 H, 16 W]."""
        res4: Tensor = self.res4(self.res3(self.res2(self.stem(x))))
        return res4


class RpnHead(nn.Module):
    """Objectness and box deltas for each of 12 anchors at each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16 * width, 8 * width, 3, padding=1)
        self.objectness_logits = nn.Conv2d(8 * width, 12, 1)
        self.anchor_deltas = nn.Conv2d(8 * width, 48, 1)

    def forward(self, res4: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 logits [N, A, H, W] and deltas [N, A * 4, H, W] of the res4 map [N, 1024, H, W]."""
        hidden = functional.relu_(self.conv(res4))
        return self.objectness_logits(hidden).float(), self.anchor_deltas(hidden).float()


class AnchorGenerator(nn.Module):
    """Holds the anchors under the name that the published weights use; the values are a formula's."""

    def __init__(self) -> None:
        super().__init__()
        self.cell_anchors = nn.ParameterList([nn.Parameter(cell_anchors(), requires_grad=False)])


class ProposalGenerator(nn.Module):
    """The RPN's modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.anchor_generator = AnchorGenerator()
        self.rpn_head = RpnHead(width)


class BoxPredictor(nn.Module):
    """Class, box and attribute of RoI features. Shapes here are those of the published size."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        dim = size.feature_dim
        self.cls_score = nn.Linear(dim, size.num_classes + 1)
        self.bbox_pred = nn.Linear(dim, size.num_classes * 4)
        if size.num_attributes:
            self.cls_embedding = nn.Embedding(size.num_classes + 1, dim // 8)
            self.fc_attr = nn.Linear(dim + dim // 8, dim // 4)
            self.attr_score = nn.Linear(dim // 4, size.num_attributes + 1)

    def class_logits(self, features: Tensor) -> Tensor:
        """Return float32 [R, C + 1], background last, of features [R, 2048]."""
        logits: Tensor = self.cls_score(features.to(self.cls_score.weight.dtype))
        return logits.float()

    def box_deltas(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return the deltas float32 [R, 4] for one class each, int64 [R]; those of all classes are never computed."""
        weight = self.bbox_pred.weight.view(-1, 4, features.shape[1])[classes]  # [R, 4, 2048]
        bias = self.bbox_pred.bias.view(-1, 4)[classes]  # [R, 4]
        deltas: Tensor = torch.baddbmm(bias[:, :, None], weight, features.to(weight.dtype)[:, :, None]).squeeze(2)
        return deltas.float()

    def attribute_logits(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return float32 [R, attributes + 1], "none" last, of features [R, 2048] and the class of each, int64 [R].

        The class is the most probable of all, background included, as it was in training.
        """
        features = features.to(self.fc_attr.weight.dtype)
        embedded = self.cls_embedding(classes)  # [R, 256]
        hidden = functional.relu_(self.fc_attr(torch.cat([features, embedded], dim=1)))  # [R, 512]
        logits: Tensor = self.attr_score(hidden)
        return logits.float()


class RoiHeads(nn.Module):
    """res5 on pooled RoIs, and the predictor. res5 keeps the 14 x 14 positions and dilates its 3x3 convolutions."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.res5 = stage(size.num_blocks[3], 16 * size.width, size.feature_dim, stride=1, dilation=2)
        self.box_predictor = BoxPredictor(size)


class VgFasterRcnn(nn.Module):
    """The whole network. Its methods are the stages; `vg_faster_rcnn` strings them together."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.size = size
        self.backbone = Backbone(size)
        self.proposal_generator = ProposalGenerator(size.width)
        self.roi_heads = RoiHeads(size)
        self.eval().requires_grad_(False)

    @property
    def predictor(self) -> BoxPredictor:
        """Return the heads on RoI features."""
        predictor: BoxPredictor = self.roi_heads.box_predictor
        return predictor

    @property
    def cell_anchors(self) -> Tensor:
        """Return the anchors float32 [12, 4] at the position (0, 0), pixels."""
        return cell_anchors().to(self.backbone.stem.conv1.weight.device)

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the res4 map [N, 1024, H, W] of images [N, 3, height, width]: BGR minus means, see `preprocess`."""
        weight = self.backbone.stem.conv1.weight
        res4: Tensor = self.backbone(images.to(weight.device, weight.dtype, memory_format=torch.channels_last))
        return res4

    def objectness(self, res4: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 RPN logits [N, A, H, W] and deltas [N, A * 4, H, W] of the res4 map."""
        maps: tuple[Tensor, Tensor] = self.proposal_generator.rpn_head(res4)
        return maps

    def describe(self, res4: Tensor, boxes: Tensor) -> Tensor:
        """Return the features float32 [R, 2048] of boxes in one image: res5 over the pooled box, averaged.

        res4: [1, 1024, H, W]. boxes: float32 [R, 4], pixels of the preprocessed image.
        """
        means = [self.roi_heads.res5(part).mean(dim=(2, 3), dtype=torch.float32) for part in self.pool(res4, boxes)]
        return torch.cat(means) if means else res4.new_zeros(0, self.size.feature_dim, dtype=torch.float32)

    def pool(self, res4: Tensor, boxes: Tensor) -> Iterator[Tensor]:
        """Yield the pooled windows [r, 1024, 14, 14] of boxes in one image, some RoIs at a time; see `describe`."""
        rois = functional.pad(boxes.to(res4.device), (1, 0))  # [R, 5], image 0
        size = ROIS_A_PART_CUDA if res4.is_cuda else ROIS_A_PART_CPU
        return roi_pool_parts(res4, rois, output_size=POOLED_SIZE, spatial_scale=1 / STRIDE_PX, rois_a_part=size)

    def fold_norms(self) -> "VgFasterRcnn":
        """Return self with every batch norm folded into its convolution; the state dict is then another one."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold_norm()
        return self
