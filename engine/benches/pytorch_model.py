"""The modality-agnostic base model in plain PyTorch, for timing only: same shapes and operations as `engine`'s.

Pre-norm blocks with layer scale, stochastic depth and relative position bias, qkv without key bias, attention through
`scaled_dot_product_attention`, BERT embeddings for text, heads of `irtr` and `vqa`. Weights are random.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LAYERS, VL_START, PATCH, VOCABULARY, ANSWERS = 768, 12, 12, 10, 16, 30522, 3129


class Block(nn.Module):
    def __init__(self, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.gamma_1, self.gamma_2 = nn.Parameter(0.1 * torch.ones(WIDTH)), nn.Parameter(0.1 * torch.ones(WIDTH))

    def drop_path(self, x):
        if not self.training or self.drop_rate == 0:
            return x
        keep = 1 - self.drop_rate
        return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep)

    def forward(self, x, bias):
        """x: [batch, tokens, width]; bias: [1 or batch, heads, tokens, tokens]"""
        batch, tokens, _ = x.shape
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(self.norm1(x), self.qkv.weight, qkv_bias)
        q, k, v = qkv.reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.drop_path(self.gamma_1 * self.proj(out.transpose(1, 2).reshape(batch, tokens, WIDTH)))
        return x + self.drop_path(self.gamma_2 * self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class Model(nn.Module):
    def __init__(self, image_size: int, max_text: int = 40, drop_rate: float = 0.1):
        super().__init__()
        self.side, self.max_text = image_size // PATCH, max_text
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.words, self.types = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(2, WIDTH)
        self.text_types, self.text_norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.blocks = nn.ModuleList(Block(drop_rate * i / (LAYERS - 1)) for i in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.text_proj, self.image_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.pooler = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.LayerNorm(2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, ANSWERS)
        )
        grid = (2 * self.side - 1) ** 2
        self.table = nn.Parameter(torch.randn(grid + 3 + 2 * max_text + 2, HEADS * LAYERS) * 0.02)
        y, x = torch.meshgrid(torch.arange(self.side), torch.arange(self.side), indexing="ij")
        y, x = y.flatten(), x.flatten()
        distance = (y[:, None] - y + self.side - 1) * (2 * self.side - 1) + (x[:, None] - x + self.side - 1)
        image = torch.full((len(y) + 1, len(y) + 1), grid)
        image[1:, 1:] = distance
        text = torch.arange(max_text)
        text = text[:, None] - text + max_text - 1 + grid + 5
        self.register_buffer("image_index", image)
        self.register_buffer("text_index", text.clamp(max=self.table.shape[0] - 1))
        upper = torch.cat([self.text_index, torch.full((max_text, len(image)), grid + 3)], 1)
        lower = torch.cat([torch.full((len(image), max_text), grid + 4), image], 1)
        self.register_buffer("joint_index", torch.cat([upper, lower], 0))
        nn.init.normal_(self.words.weight, std=0.02)

    def biases(self, index, layers=range(LAYERS)):
        """One [1, heads, tokens, tokens] for each layer."""
        table = self.table[:, layers[0] * HEADS : (layers[-1] + 1) * HEADS]
        return F.embedding(index, table).permute(2, 0, 1).reshape(len(layers), 1, HEADS, *index.shape).unbind(0)

    def embed_image(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.types.weight[1]

    def embed_text(self, ids):
        x = self.text_norm(self.words(ids) + self.text_types.weight[0])
        return F.dropout(x, 0.1, self.training) + self.types.weight[0]

    def run(self, x, biases, mask=None, blocks=None):
        for block, bias in zip(blocks or self.blocks, biases):
            x = block(x, bias if mask is None else bias + mask)
        return x

    def encode_image(self, image):
        return self.norm(self.run(self.embed_image(image), self.biases(self.image_index)))

    def encode_text(self, ids, mask):
        return self.norm(self.run(self.embed_text(ids), self.biases(self.text_index), additive(mask)))

    def irtr_loss(self, image, ids, mask):
        image = F.normalize(self.image_proj(self.encode_image(image)[:, 0]), dim=-1)
        text = F.normalize(self.text_proj(self.encode_text(ids, mask)[:, 0]), dim=-1)
        logits = self.logit_scale.exp() * image.float() @ text.float().t()
        targets = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2

    def encode_joint(self, image, ids, mask):
        lower, upper = range(VL_START), range(VL_START, LAYERS)
        image = self.run(self.embed_image(image), self.biases(self.image_index, lower), None, self.blocks[:VL_START])
        text = self.run(
            self.embed_text(ids), self.biases(self.text_index, lower), additive(mask), self.blocks[:VL_START]
        )
        mask = torch.cat([mask, mask.new_ones(len(mask), image.shape[1])], 1)
        biases = self.biases(self.joint_index, upper)
        return self.norm(self.run(torch.cat([text, image], 1), biases, additive(mask), self.blocks[VL_START:]))

    def vqa_loss(self, image, ids, mask, targets):
        logits = self.classifier(self.pooler(self.encode_joint(image, ids, mask)[:, 0]).tanh())
        return F.binary_cross_entropy_with_logits(logits.float(), targets) * ANSWERS


def additive(mask):
    """[batch, tokens] of 1 and 0 → [batch, 1, 1, tokens] of 0 and −inf"""
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, float("-inf"))[:, None, None]


def forward_flop(task: str, image_size: int, text: int = 40) -> float:
    """Matrix products of one sample's forward pass, multiplications and additions counted apart."""

    def blocks(layers, tokens):
        return layers * (2 * tokens * 12 * WIDTH**2 + 4 * tokens**2 * WIDTH)

    patches = (image_size // PATCH) ** 2
    flop = 2 * patches * 3 * PATCH**2 * WIDTH
    image, text = patches + 1, text
    if task == "image":
        return flop + blocks(LAYERS, image)
    if task == "irtr":
        return flop + blocks(LAYERS, image) + blocks(LAYERS, text)
    joint = blocks(VL_START, image) + blocks(VL_START, text) + blocks(LAYERS - VL_START, image + text)
    return flop + joint + 2 * (WIDTH**2 + 2 * WIDTH**2 + 2 * WIDTH * ANSWERS)


def optimizer(model, **options):
    """AdamW without decay for norm weights and biases, as `engine` groups them."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim == 1 and "gamma" not in name or "bias" in name or name == "table" else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=2e-5, betas=(0.9, 0.98), eps=1e-8, **options)
