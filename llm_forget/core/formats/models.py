"""JSON files that are written beside the weights of adapters, merged models and exports."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from llm_forget.core.errors import ModelError
from llm_forget.core.formats._record import Count, Digest, Logits, Nats, Part, Record, Share, record
from llm_forget.core.formats.run import Source, Target


class Tensor(Part, frozen=True):
    """Type, shape and digest of a tensor of an adapter."""

    dtype: str
    shape: list[Count]
    sha256: str | UnsetType = UNSET  # hex digits, of its bytes


class Adapter(Part, frozen=True):
    """A frozen adapter that was part of the model while another adapter was trained."""

    name: str
    digest: str | None  # null if training sharded the weights


@record("effect.json", error=ModelError, max_bytes=16 << 20)
class Effect(Record, frozen=True):
    """How an adapter changes the logits of the model on fixed prompts. Values are null if a logit is not finite.

    The effect is part of manifest.json. If training cannot measure it, the first load of the adapter writes this file.
    """

    prompts: Digest  # digest of their token ids
    max_abs: Logits | None
    mean_kl: Nats | None
    largest_logit: float | None  # largest absolute logit without the adapter
    samples: list[Logits] | None
    dtype: str  # of the model during the measurement
    quantization: dict[str, Any] | None  # of the base


@record("manifest.json", error=ModelError, max_bytes=16 << 20)
class Manifest(Record, frozen=True):
    """Digests of the files, tensors and base of an adapter, and settings for loading it; written with the adapter."""

    files: dict[str, Digest]
    tensors: dict[str, Tensor]
    base: Digest | UnsetType | None = UNSET
    beneath: list[Adapter] | UnsetType = UNSET
    quantization: dict[str, Any] | UnsetType | None = UNSET  # of the base, such as load_in_4bit
    load: dict[str, Any] | UnsetType = UNSET  # arguments of PEFT, and the dtype of the base
    effect: Effect | UnsetType | None = UNSET  # null in checkpoints, and if training sharded the weights
    adopted: dict[str, Digest] | UnsetType = UNSET  # files of an adopted adapter before it was adopted


class Difference(Part, frozen=True):
    """Difference of the logits of two models on the probe texts."""

    max_abs_logit_difference: Logits
    mean_kl: Nats


@record("merge.json", error=ModelError, max_bytes=16 << 20)
class MergeReport(Record, frozen=True):
    """Sources of a merged model or combined adapter, and how much its logits differ from theirs; written by `merge`."""

    combination: str  # stack, sum, cat, svd, ...
    files: dict[Annotated[str, Meta(pattern=r"^(adapter/)?[^/\\]+$")], Digest]
    sources: Annotated[list[Source], Meta(min_length=1)] | UnsetType = UNSET  # unset if adapters are not from runs
    beneath: Target | UnsetType = UNSET
    base_precision: str | UnsetType = UNSET  # trained, original, as loaded; a combined adapter has none
    base: str | UnsetType | None = UNSET  # name of the target
    adapter: Digest | UnsetType = UNSET  # of the weights of a single adapter
    quantization: dict[str, Any] | UnsetType | None = UNSET
    dtype: str | UnsetType = UNSET
    n_probe_tokens: Count | UnsetType = UNSET
    max_abs_logit_difference: Logits | UnsetType = UNSET
    tolerance: Logits | UnsetType = UNSET
    mean_kl: Nats | UnsetType = UNSET
    mean_kl_of_adapter: Nats | UnsetType = UNSET  # between the adapters and the target
    as_trained: Difference | UnsetType | None = UNSET  # between the result and the adapters on their quantised base
    rank: Count | UnsetType | None = UNSET
    density: Share | UnsetType | None = UNSET
    majority: str | UnsetType | None = UNSET
    seed: int | UnsetType | None = UNSET
    error_of_averaging: Share | UnsetType | None = UNSET  # of the norm of the exact sum
    rank_error: Share | UnsetType | None = UNSET  # of the norm of the exact sum


class ExportedModel(Part, frozen=True):
    """Digest and name of the model that was exported."""

    digest: Digest
    name: str | UnsetType = UNSET


@record("export.json", error=ModelError, max_bytes=16 << 20)
class ExportReport(Record, frozen=True):
    """Difference of the logits of a model before and after its export; written by `export`."""

    form: str  # int8, nf4, gguf-q8_0, ...
    of: ExportedModel
    merge: dict[str, Any] | None  # keys of merge.json, if the model was merged
    file: str | None  # name, if the export is one GGUF file
    digest: Digest  # of the weights that were written
    n_probe_tokens: Count
    max_abs_logit_difference: Logits
    mean_kl: Nats
    files: dict[str, Digest]
    dtype: str | UnsetType = UNSET
    as_read: Difference | UnsetType = UNSET  # between the rounded weights and the files when read back
    tolerance: Logits | UnsetType = UNSET
    tensors: dict[str, Count] | UnsetType = UNSET  # GGUF: number of tensors of each type
    tokenizer: dict[str, Any] | UnsetType = UNSET  # GGUF
