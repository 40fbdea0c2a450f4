"""Azaion.Loader: models and Docker images for edge devices, encrypted, proved whole, all or nothing."""

__version__ = "0.1.0"
