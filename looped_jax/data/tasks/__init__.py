"""Synthetic reasoning tasks, by name. Importing this package imports no TensorFlow."""

from looped_jax.data.tasks.registry import get_task, task_names

__all__ = ["get_task", "task_names"]
