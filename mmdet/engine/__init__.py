"""All that stands on mmengine's Runner, imported module by module: starting processes must not wait for it."""
