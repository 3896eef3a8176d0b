"""An OpenAI-compatible server over the engine."""

from t3d.serve.app import make_app
from t3d.serve.models import ModelOptions, ServedModel, load_served
from t3d.serve.server import bind, serve, serving
from t3d.serve.service import Service
from t3d.serve.settings import Settings

__all__ = ["ModelOptions", "ServedModel", "Service", "Settings", "bind", "load_served", "make_app", "serve", "serving"]
