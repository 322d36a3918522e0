"""Records for any VLM from nothing but the package: requests that name a harm, and harmless ones of the same form.

:func:`.made.write_starter` writes them; ``texts.toml`` holds what is asked, :mod:`.packages` what installed packages
add.
"""
