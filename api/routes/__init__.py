"""The routes: one file a resource. With `api.main`, the only part that speaks HTTP."""
