import pickle

import pytest

from sar2eo.errors import Sar2eoError, Sar2eoWarning, hide_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:s3cr3t@host/a.tif: gone", "https://host/a.tif: gone"),
        ("http://user:p@s3cr3t@host/a.tif", "http://host/a.tif"),
        ("(https://host/a.tif?sig=s3cr3t): no", "(https://host/a.tif): no"),
        ("'https://host/a.tif?sig=s3cr3t&b=1,2': no", "'https://host/a.tif': no"),
        ("pool(host): Max retries exceeded with url: /a.tif?sig=s3cr3t (x)", None),
        ("/vsicurl/https://u:s3cr3t@host/a.tif?b", "/vsicurl/https://host/a.tif"),
        ("/vsizip//vsicurl/ftp://u:s3cr3t@host/a.zip/b", "/vsizip//vsicurl/ftp://host/a.zip/b"),
        ("/vsicurl?pc_url_signing=yes&header.A=s3cr3t&url=https://h/a", "/vsicurl"),
        ("is it a.tif? or VV=b@c.tif", "is it a.tif? or VV=b@c.tif"),
        ("https://host/@40.1,2.3/a.tif", "https://host/@40.1,2.3/a.tif"),
    ],
)
def test_secrets_of_urls_stand_in_no_message(text: str, shown: str | None) -> None:
    hidden = hide_secrets(text)
    assert "s3cr3t" not in hidden
    assert hidden == (shown or hidden)
    for kind in (Sar2eoError, Sar2eoWarning):
        assert str(pickle.loads(pickle.dumps(kind(text)))) == hidden  # noqa: S301
