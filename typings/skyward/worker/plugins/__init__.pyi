from skyward.worker.plugins.plugin import Plugin

PLUGINS: dict[str, type[Plugin]]
