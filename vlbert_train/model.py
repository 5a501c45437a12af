"""VL-BERT as a Hugging Face model: the paper's figure in one file. Promise: a Batch in, predictions where it asks, out.

Letters as in `batch`; H is the width of the encoder, V the vocabulary, C the classes of RoIs.

    position     [CLS]   words   [SEP]   RoIs            [END]
    token        its word embedding      "RoI" embedding [END] embedding     (a hidden RoI: "hidden RoI" embedding)
    + visual     the whole image         its own         none                (text-only: one learned embedding)
    + segment    0       0       0       2               2
    + position   0       1 ..            one for all     the one after

Sources: Su et al., VL-BERT, ICLR 2020, section 3.2 and figure 1; its released code where the paper is silent.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler, BertPredictionHeadTransform

from vlbert_train import attention
from vlbert_train.batch import Batch, Predictions
from vlbert_train.config import ModelConfig

# A RoI's centre, width and height, as shares of the image times 100, each as sines and cosines of 256 wavelengths that
# grow from 1 to nearly 1000. Source: VL-BERT's released code.
GEOMETRY_SCALE, GEOMETRY_WAVES, GEOMETRY_BASE = 100.0, 256, 1000.0
# A sine and a cosine of each wave for each of four numbers.
GEOMETRY_PARTS = 4 * 2
GEOMETRY_DIM = GEOMETRY_PARTS * GEOMETRY_WAVES


class VLBertConfig(BertConfig):  # type: ignore[misc]  # transformers has no types
    """Sizes of a VL-BERT.

    feature_dim: F. num_roi_classes: C, 0 for a model without a masked-RoI head. has_relation_head: whether it also says
    if caption and image belong together. visual_gain_init: what the gain of the visual norms begins with; 0, as
    published, lets a new model begin as BERT does, blind. feature_dropout_prob: dropout of what is projected of a RoI,
    none for hidden_dropout_prob. geometry_waves: see `embed_geometry`; 256 as published. attention: the kernel, see
    `attention.uses_varlen`.
    """

    model_type = "vlbert"

    type_vocab_size: int = 3
    feature_dim: int = 2048
    num_roi_classes: int = 0
    has_relation_head: bool = False
    visual_gain_init: float = 0.0
    feature_dropout_prob: float | None = None
    geometry_waves: int = GEOMETRY_WAVES
    attention: str = "auto"


def config_of(config: ModelConfig, *, vocab_size: int, feature_dim: int, num_labels: int, pad_id: int) -> VLBertConfig:
    """Return the model that settings and data ask for. num_labels: C."""
    return VLBertConfig(
        vocab_size=vocab_size,
        feature_dim=feature_dim,
        num_roi_classes=num_labels,
        pad_token_id=pad_id,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_dropout_prob=config.hidden_dropout_prob,
        attention_probs_dropout_prob=config.attention_probs_dropout_prob,
        feature_dropout_prob=config.feature_dropout_prob,
        initializer_range=config.initializer_range,
        visual_gain_init=config.visual_gain_init,
        geometry_waves=config.geometry_waves,
        attention=config.attention,
    )


class VLBertPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # transformers has no types
    """What both models share: loading, saving and the first weights."""

    config_class = VLBertConfig
    base_model_prefix = "vlbert"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules = ("BertLayer",)

    def __init__(self, config: VLBertConfig) -> None:
        attention.register()
        # Whatever the caller asks for: batches are packed, and only this attention knows it.
        config._attn_implementation = attention.PACKED
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Source: BERT for the encoder; VL-BERT's released code for what is new."""
        super()._init_weights(module)
        if isinstance(module, VLBertEmbeddings):
            for parameter in (module.roi_word, module.hidden_roi_word, module.text_visual, module.end_word):
                init.normal_(parameter, std=self.config.initializer_range)
            init.zeros_(module.hidden_roi_feature)
            for norm in (module.text_visual_norm, module.roi_visual_norm):
                init.constant_(norm.weight, self.config.visual_gain_init)
        elif isinstance(module, WordHead):
            init.zeros_(module.bias)


def embed_geometry(geometry: Tensor, waves: int = GEOMETRY_WAVES) -> Tensor:
    """Return [N, 8 * waves] of boxes f32 [N, 4], corners as shares of the image: (xc, yc, w, h), sines then cosines.

    waves: so many wavelengths, evenly spaced in their logarithm over the published range, however many they are.
    Source: VL-BERT, section 3.2, after Hu et al., Relation Networks (CVPR 2018); scales as released.
    """
    corners, ends = geometry[:, :2], geometry[:, 2:]
    places = torch.cat([(corners + ends) / 2, ends - corners], dim=1) * GEOMETRY_SCALE  # [N, 4]
    exponents = torch.arange(waves, dtype=geometry.dtype, device=geometry.device) / waves
    angles = places[:, :, None] / GEOMETRY_BASE**exponents  # [N, 4, waves]
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)


class VLBertEmbeddings(nn.Module):
    """All positions of a packed batch, [S, H]."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.geometry_waves = config.geometry_waves
        self.words = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.segments = nn.Embedding(config.type_vocab_size, width)
        self.roi_word = nn.Parameter(torch.empty(width))
        self.hidden_roi_word = nn.Parameter(torch.empty(width))
        self.end_word = nn.Parameter(torch.empty(width))
        self.text_visual = nn.Parameter(torch.empty(width))
        self.hidden_roi_feature = nn.Parameter(torch.empty(config.feature_dim))
        self.roi_projection = nn.Linear(GEOMETRY_PARTS * config.geometry_waves + config.feature_dim, width)
        self.text_visual_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.roi_visual_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        own = config.feature_dropout_prob
        self.feature_dropout = nn.Dropout(config.hidden_dropout_prob if own is None else own)

    def forward(self, batch: Batch) -> Tensor:
        """Return the embeddings, [S, H]."""
        rows = torch.cat([self._texts(batch), self._rois(batch), self.end_word.expand(batch.num_sequences, -1)])
        slots = torch.cat([batch.token_slots, batch.roi_slots, batch.end_slots])  # [S], each position once
        found = rows.new_empty(rows.shape).index_copy_(0, slots, rows)
        found = found + self.positions(batch.position_ids) + self.segments(batch.segment_ids)
        embedded: Tensor = self.dropout(self.norm(found))
        return embedded

    def _texts(self, batch: Batch) -> Tensor:
        """Return [T, H]: words, each with what its whole image looks like."""
        features = batch.image_features.to(self.roi_projection.weight.dtype)
        seen = self._project(features, _whole_image_geometry(batch))  # [B, H]
        seen = torch.where(batch.has_image[:, None], seen, self.text_visual.to(seen.dtype))
        normed: Tensor = self.text_visual_norm(seen)
        words: Tensor = self.words(batch.token_ids)
        return words + normed.index_select(0, batch.token_sequence)

    def _rois(self, batch: Batch) -> Tensor:
        """Return [N, H]: RoIs, hidden ones with learned embeddings in place of feature and word."""
        hidden = batch.roi_hidden[:, None]
        features = torch.where(hidden, self.hidden_roi_feature, batch.roi_features.to(self.hidden_roi_feature.dtype))
        seen: Tensor = self.roi_visual_norm(self._project(features, batch.roi_geometry))
        return torch.where(hidden, self.hidden_roi_word, self.roi_word) + seen

    def _project(self, features: Tensor, geometry: Tensor) -> Tensor:
        """Return [n, H] of features [n, F] and boxes [n, 4]."""
        places = embed_geometry(geometry, self.geometry_waves).to(features.dtype)
        seen = torch.cat([places, features], dim=1)
        return functional.relu(self.roi_projection(self.feature_dropout(seen)))


def _whole_image_geometry(batch: Batch) -> Tensor:
    """Return f32 [B, 4]: the box of each sequence's first RoI, which is its whole image; 0 where there is none."""
    text_lengths = batch.position_ids.index_select(0, batch.end_slots) - 1  # [B], since [END] stands one after the RoIs
    boxes = batch.roi_geometry.new_zeros(batch.num_slots, 4).index_copy_(0, batch.roi_slots, batch.roi_geometry)
    return boxes.index_select(0, batch.cu_seqlens[:-1] + text_lengths)


class VLBertModel(VLBertPreTrainedModel):
    """The encoder: a Batch to its hidden states."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__(config)
        self.embeddings = VLBertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.embeddings.words

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Take other word embeddings."""
        self.embeddings.words = value

    def forward(self, batch: Batch) -> Tensor:
        """Return the hidden states of all positions, [S, H]."""
        embedded = self.embeddings(batch)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        is_varlen = attention.uses_varlen(self.config.attention, embedded, dropout)
        packing = attention.make_packing(batch.cu_seqlens, batch.max_seqlen, batch.num_slots, is_varlen=is_varlen)
        hidden: Tensor = self.encoder(embedded[None], packing=packing).last_hidden_state[0]
        return hidden


class WordHead(nn.Module):
    """Masked words; what it compares with are the word embeddings themselves."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Return logits [M, V] of hidden states [M, H] and word embeddings [V, H]."""
        return functional.linear(self.transform(hidden), words, self.bias)


class RoiHead(nn.Module):
    """Masked RoIs."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classes = nn.Linear(config.hidden_size, config.num_roi_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [Q, C] of hidden states [Q, H]."""
        logits: Tensor = self.classes(functional.gelu(self.dense(hidden)))
        return logits


class RelationHead(nn.Module):
    """Whether caption and image belong together, told at [CLS]."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__()
        self.pooler = BertPooler(config)
        self.classes = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [n, 2] of hidden states [n, H]."""
        logits: Tensor = self.classes(self.pooler(hidden[:, None]))
        return logits


class VLBertForPreTraining(VLBertPreTrainedModel):
    """The encoder with its heads, which look at asked positions only."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__(config)
        self.vlbert = VLBertModel(config)
        self.word_head = WordHead(config)
        self.roi_head = RoiHead(config) if config.num_roi_classes else None
        self.relation_head = RelationHead(config) if config.has_relation_head else None
        self.post_init()

    def get_output_embeddings(self) -> None:
        """Return none: the word head holds no matrix of its own."""
        return

    def forward(self, batch: Batch) -> Predictions:
        """Return what is predicted at the asked positions of `batch`."""
        hidden = self.vlbert(batch)
        relations = None
        if self.relation_head is not None:
            first = batch.cu_seqlens[:-1].long()[batch.has_image]
            relations = self.relation_head(hidden.index_select(0, first))
        return Predictions(
            word_logits=self.word_head(
                hidden.index_select(0, batch.word_target_slots), self.vlbert.embeddings.words.weight
            ),
            roi_logits=self._rois(hidden, batch),
            relation_logits=relations,
        )

    def _rois(self, hidden: Tensor, batch: Batch) -> Tensor:
        if self.roi_head is None:
            assert not len(batch.roi_target_slots), "a model without RoI classes is asked for some"
            return hidden.new_zeros(0, 0)
        logits: Tensor = self.roi_head(hidden.index_select(0, batch.roi_target_slots))
        return logits
