from nanotir.huggingface.folder import add_tags, is_pretrained, load_pretrained, save_pretrained

__all__ = ["add_tags", "is_pretrained", "load_pretrained", "save_pretrained"]
