"""Packaging. Training needs only the core; TensorFlow and seqio come with the extra `data`."""

import pathlib

from setuptools import find_packages, setup

CORE = [
    "absl-py",
    "array_record>=0.8",
    "etils[epath]",
    "filelock",
    "flax>=0.12",
    "grain>=0.2.12",
    "jax>=0.10.2",
    "jinja2",
    "matplotlib",
    "ml-collections>=1.0",
    "numpy>=1.26",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.20",
    "rich",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6",
    "scipy",
    "tqdm",
    "zstandard",
]
DATA = ["seqio", "tensorflow", "tensorflow-datasets"]
DASK = ["distributed"]
DOCS = ["mkdocs", "mkdocstrings[python]"]
# All that tests need but TensorFlow, for releases of Python and JAX that it does not follow yet.
NOTEBOOKS = ["ipykernel", "nbclient"]
GCS, S3 = ["gcsfs"], ["s3fs"]
TEST = [
    *DOCS,
    *NOTEBOOKS,
    *GCS,
    *S3,
    "gcp-storage-emulator",
    *DASK,
    "datasets",
    "gguf",
    "hypothesis",
    "jax[tpu]",
    "moto[server]>=5",
    "mypy",
    "pyarrow",
    "pytest",
    "pytest-xdist",
    "ruff",
    "safetensors",
    "setuptools",
    "tokenizers",
]
EXTRAS = {
    "data": DATA,
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    "gcs": GCS,
    "s3": S3,
    "dask": DASK,
    "docs": DOCS,
    "notebooks": NOTEBOOKS,
    "tokenizers": ["tokenizers"],
    "wandb": ["wandb"],
    "mlflow": ["alembic", "mlflow-skinny", "sqlalchemy"],
    "parquet": ["pyarrow"],
    "datasets": ["datasets"],
    "hf": ["gguf", "safetensors", "tokenizers"],
    "lm-eval": ["lm-eval", "torch"],
    "test": [*TEST, *DATA],
    "test-core": TEST,
    "bench": ["torch", "transformers"],
    "judges": ["torch", "transformers>=5.24"],
}

setup(
    name="looped_jax",
    version="0.1.0",
    description="Looped transformers in JAX: training, evaluation and theory, laptop to TPU pod.",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["looped_jax", "looped_jax.*", "experiments", "experiments.*"]),
        "looped_jax.assets",
    ],
    # What code reads keeps its home in data/; see looped_jax/config/places.py.
    package_dir={"looped_jax.assets": "data"},
    package_data={"looped_jax.assets": ["**/*"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    # vLLM calls it where both are installed: it then knows what export's --layout=shared writes.
    entry_points={
        "vllm.general_plugins": ["looped_jax = looped_jax.interop.remote.vllm_plugin:register"]
    },
)
