"""Patch first, import second: the tests run as a gevent server would."""

from gevent import monkey

monkey.patch_all()
