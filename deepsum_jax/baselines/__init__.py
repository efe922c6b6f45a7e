"""The other systems that DeepSUM is compared with."""
