"""The form in which the servers that know SDAR read a saved model."""

from t3d.models.servers.form import CONFIG_CODE_FILE, SERVED_MASK_ID, in_server_form, is_served

__all__ = ["CONFIG_CODE_FILE", "SERVED_MASK_ID", "in_server_form", "is_served"]
