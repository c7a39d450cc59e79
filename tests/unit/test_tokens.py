"""Tokens: one that the issuer signed for us is taken, and nothing else, in whatever way it is wrong.

The classes of attack are those of Wycheproof's JOSE vectors, made here for the issuer of the tests.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from api.compact import Unidentified, bearer, client_of, scopes_of
from api.settings import TokenSettings
from api.tokens import verifier
from tests.fakes import issuer
from tests.fakes.issuer import CLIENT, ISSUER, jwks, key, part, signed
from tidegate.errors import Fatal, Transient
from tidegate.settings import read

STATIC = TokenSettings(issuer=ISSUER, clients=(CLIENT, "other-client"), jwks=jwks("key-1", "key-2"))
NOW = int(time.time())


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a good token, by the clock of these tests, which stands still."""
    return issuer.claims(**{"iat": NOW - 10, "exp": NOW + 3_600, **changes})


async def accepted(token: str, stated: TokenSettings = STATIC) -> dict[str, Any]:
    found = await verifier(stated, lambda: NOW).claims(f"Bearer {token}")
    assert found is not None
    return dict(found)


# --- what is taken ---------------------------------------------------------------------------------


async def test_what_the_issuer_signed_for_us_is_taken() -> None:
    assert (await accepted(signed(claims(username="ann"))))["username"] == "ann"
    assert (await accepted(signed(claims(client_id="other-client"), name="key-2")))["client_id"] == "other-client"
    assert (await accepted(signed(claims(), {"typ": "at+jwt"})))["iss"] == ISSUER
    assert (await accepted(signed(claims(exp=NOW - 2))))["sub"], "within the leeway"
    assert (await accepted(signed(claims(nbf=NOW + 2, iat=NOW + 2, exp=NOW + 60.5))))["sub"]
    assert await verifier(STATIC).claims(None) is None


async def test_another_library_s_signature_is_taken() -> None:
    """The padding and hash of RFC 7518, made without joserfc."""
    private = private_key()
    text = f"{part({'alg': 'RS256', 'kid': 'key-1'})}.{part(claims())}"
    sign = private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    assert (await accepted(f"{text}.{part(sign)}"))["sub"]
    for wrong in (
        private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA512()),
        sign[:-1],
        sign + b"\0",
        b"\0" + sign,
    ):
        with pytest.raises(Unidentified):
            await accepted(f"{text}.{part(wrong)}")
    salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    with pytest.raises(Unidentified):
        await accepted(f"{text}.{part(private.sign(text.encode(), salted, hashes.SHA256()))}")


async def test_the_padding_that_these_tests_forge_is_taken_when_it_is_right() -> None:
    assert (await accepted(number_signed(pkcs1)))["sub"]


async def test_an_id_token_counts_only_where_it_is_let_in() -> None:
    token = signed(claims(token_use="id", client_id=None, aud=CLIENT, username=None, **{"cognito:username": "ann"}))
    with pytest.raises(Unidentified, match="send the access token"):
        await accepted(token)
    both = TokenSettings(issuer=ISSUER, clients=(CLIENT,), jwks=jwks(), uses=("access", "id"))
    assert (await accepted(token, both))["username"] == "ann"
    for changes in ({"aud": "somebody"}, {"aud": None}, {"aud": None, "client_id": CLIENT}):
        with pytest.raises(Unidentified, match="client"):
            await accepted(signed(claims(**{"token_use": "id", "client_id": None, **changes})), both)


async def test_any_issuer_by_its_audience() -> None:
    other = TokenSettings(issuer=ISSUER, clients=("the-api",), jwks=jwks(), profile="oidc")
    stated = claims(token_use=None, client_id="app-7", aud=["x", "the-api"])
    assert client_of(await accepted(signed(stated, {"typ": "at+jwt"}), other)) == "app-7"
    for audience in (None, "the-api2", ["x"], {"the-api": 1}, [["the-api"]], 7):
        with pytest.raises(Unidentified, match="client"):
            await accepted(signed({**stated, "aud": audience}), other)


def test_scopes_and_clients_as_issuers_write_them() -> None:
    assert scopes_of({"scope": "openid tidegate/read"}) == {"openid", "tidegate/read"}
    assert scopes_of({"scp": ["a", "b", 7]}) == {"a", "b"}
    assert scopes_of({"scope": 7}) == scopes_of({}) == frozenset()
    assert client_of({"azp": "a", "aud": "b"}) == "a"
    assert client_of({"aud": ["b", "c"]}) == "b"
    assert client_of({}) == ""


# --- what is not -----------------------------------------------------------------------------------


def with_key(header: dict[str, Any], made: Any, algorithm: str) -> str:
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    raw = json.dumps(claims()).encode()
    return jws.serialize_compact({"kid": "key-1", **header, "alg": algorithm}, raw, made, [algorithm], registry)


def confused(algorithm: str, digest: str, secret: bytes) -> str:
    """A MAC under the public key: what a library that lets the token choose takes for a signature."""
    text = f"{part({'alg': algorithm, 'kid': 'key-1'})}.{part(claims())}"
    return f"{text}.{part(hmac.digest(secret, text.encode(), digest))}"


def unsigned(algorithm: object, signature: str = "") -> str:
    return f"{part({'alg': algorithm, 'kid': 'key-1'})}.{part(claims())}.{signature}"


def respelt(place: int, spell: Callable[[str], str]) -> str:
    parts = signed(claims()).split(".")
    parts[place] = spell(parts[place])
    return ".".join(parts)


def idle_bits(text: str) -> str:
    """Another last sign that decodes to the same bytes. The part must not be a multiple of four signs long."""
    signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(text) % 4 in (2, 3)
    same = text[:-1] + signs[signs.index(text[-1]) + 1]
    assert urlsafe_b64decode(same + "==") == urlsafe_b64decode(text + "==")
    return same


def twice(name: str, value: object) -> bytes:
    """Claims with a name that stands twice, signed as they are."""
    return json.dumps(claims()).encode()[:-1] + f', "{name}": {json.dumps(value)}}}'.encode()


def raw_header(text: str) -> str:
    """A signature that holds over a header that no serializer would write."""
    whole = f"{part(text.encode())}.{part(claims())}"
    return f"{whole}.{part(private_key().sign(whole.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def private_key() -> rsa.RSAPrivateKey:
    private = serialization.load_pem_private_key(key().as_pem(private=True), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    return private


def signed_as(scheme: padding.AsymmetricPadding, digest: hashes.HashAlgorithm, algorithm: str = "RS256") -> str:
    """The issuer's own key, by another scheme than the header says."""
    whole = f"{part({'alg': algorithm, 'kid': 'key-1'})}.{part(claims())}"
    return f"{whole}.{part(private_key().sign(whole.encode(), scheme, digest))}"


def number_signed(padded: Callable[[bytes], bytes], beyond: int = 0) -> str:
    """Raw RSA over whatever stands where PKCS#1 has its padding; `beyond` adds that many times the modulus."""
    numbers = private_key().private_numbers()
    modulus = numbers.public_numbers.n
    whole = f"{part({'alg': 'RS256', 'kid': 'key-1'})}.{part(claims())}"
    block = padded(hashlib.sha256(whole.encode()).digest())
    number = pow(int.from_bytes(block, "big"), numbers.d, modulus) + beyond * modulus
    return f"{whole}.{part(number.to_bytes(256 + (number.bit_length() > 2048), 'big'))}"


SHA_256 = bytes.fromhex("3031300d060960864801650304020105000420")


def pkcs1(digest: bytes, *, name: bytes = SHA_256, end: bytes = b"") -> bytes:
    """The block that PKCS#1 v1.5 signs, 256 bytes."""
    tail = b"\0" + name + digest + end
    return b"\0\1".ljust(256 - len(tail), b"\xff") + tail


def plain() -> RSAKey:
    """The issuer's key, which here may sign with any algorithm."""
    return RSAKey.import_key(key().as_pem(private=True))


def public_pem() -> bytes:
    return key().as_pem(private=False)


def padded_claims() -> dict[str, Any]:
    """Claims whose part is no multiple of four signs long, so that its last sign has idle bits."""
    return next(
        stated for size in range(3) if len(part(stated := claims(filler="x" * size))) % 4
    )  # fmt: skip


OWN = key("own-key")
FORGED: dict[str, Callable[[], str]] = {
    "none": lambda: unsigned("none"),
    "None": lambda: unsigned("None"),
    "nOnE with a signature": lambda: unsigned("nOnE", part(b"x" * 256)),
    "no alg": lambda: f"{part({'kid': 'key-1'})}.{part(claims())}.{part(b'x' * 256)}",
    "alg is a list": lambda: unsigned(["RS256"], part(b"x" * 256)),
    "alg is null": lambda: unsigned(None, part(b"x" * 256)),
    "alg in lower case": lambda: raw_header('{"alg": "rs256", "kid": "key-1"}'),
    "HS256 under the PEM": lambda: confused("HS256", "sha256", public_pem()),
    "HS256 under the PEM, trimmed": lambda: confused("HS256", "sha256", public_pem().strip()),
    "HS256 under the modulus": lambda: confused("HS256", "sha256", str(key().as_dict(private=False)["n"]).encode()),
    "HS256 under nothing": lambda: confused("HS256", "sha256", b""),
    "HS512 under the PEM": lambda: confused("HS512", "sha512", public_pem()),
    "RS256 that is a MAC": lambda: confused("RS256", "sha256", public_pem()),
    "RS384": lambda: with_key({}, plain(), "RS384"),
    "RS512": lambda: with_key({}, plain(), "RS512"),
    "PS256": lambda: with_key({}, plain(), "PS256"),
    "ES256": lambda: with_key({}, ECKey.generate_key("P-256"), "ES256"),
    "EdDSA": lambda: with_key({}, OKPKey.generate_key("Ed25519"), "Ed25519"),
    "HS256 of its own": lambda: with_key({}, OctKey.generate_key(256), "HS256"),
    "ES256 of zeros": lambda: unsigned("ES256", part(bytes(64))),
    "RS256 that is PSS": lambda: signed_as(padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()),
    "RS256 over SHA-1": lambda: signed_as(padding.PKCS1v15(), hashes.SHA1()),
    "RS256 over SHA-512": lambda: signed_as(padding.PKCS1v15(), hashes.SHA512()),
    "RS512 that is RS256": lambda: signed_as(padding.PKCS1v15(), hashes.SHA256(), "RS512"),
    "padding without the digest's name": lambda: number_signed(lambda digest: pkcs1(digest, name=b"")),
    "padding with something behind": lambda: number_signed(lambda digest: pkcs1(digest, end=b"\0" * 8)),
    "padding that is short": lambda: number_signed(
        lambda digest: (b"\0\1" + b"\xff" * 8 + b"\0" + SHA_256 + digest).ljust(256, b"\0")
    ),
    "padding of zeros": lambda: number_signed(lambda digest: pkcs1(digest).replace(b"\xff", b"\0")),
    "signature and the modulus": lambda: number_signed(pkcs1, beyond=1),
    "another key under our key's name": lambda: signed(claims(), {"kid": "key-1"}, "own-key"),
    "the issuer's other key": lambda: signed(claims(), {"kid": "key-2"}),
    "an unknown key": lambda: signed(claims(), name="own-key"),
    "no key named": lambda: raw_header('{"alg": "RS256"}'),
    "key name is a number": lambda: raw_header('{"alg": "RS256", "kid": 1}'),
    "key name is empty": lambda: raw_header('{"alg": "RS256", "kid": ""}'),
    "key name ends in NUL": lambda: raw_header('{"alg": "RS256", "kid": "key-1\\u0000"}'),
    "NUL in the token": lambda: signed(claims()) + "\0",
    "key name is a path": lambda: signed(claims(), {"kid": "../../dev/null"}),
    "key name is SQL": lambda: signed(claims(), {"kid": "x' UNION SELECT 'key-1"}),
    "key brought along": lambda: signed(claims(), {"kid": "key-1", "jwk": OWN.as_dict(private=False)}, "own-key"),
    "right key brought along": lambda: signed(claims(), {"jwk": key().as_dict(private=False)}),
    "key set elsewhere": lambda: signed(claims(), {"jku": "https://evil.example/jwks.json"}),
    "certificate elsewhere": lambda: signed(claims(), {"x5u": "https://evil.example/cert.pem"}),
    "certificate brought along": lambda: signed(claims(), {"x5c": ["MIIB"]}),
    "crit": lambda: raw_header('{"alg": "RS256", "kid": "key-1", "crit": ["exp"], "exp": 1}'),
    "crit is empty": lambda: raw_header('{"alg": "RS256", "kid": "key-1", "crit": []}'),
    "crit of an unknown extension": lambda: raw_header('{"alg": "RS256", "kid": "key-1", "crit": ["x"], "x": 1}'),
    "unencoded payload": lambda: raw_header('{"alg": "RS256", "kid": "key-1", "b64": false}'),
    "header field twice": lambda: raw_header('{"alg": "RS256", "kid": "own-key", "kid": "key-1"}'),
    "alg twice": lambda: raw_header('{"alg": "none", "alg": "RS256", "kid": "key-1"}'),
    "alg twice, spelt with an escape": lambda: raw_header('{"\\u0061lg": "none", "alg": "RS256", "kid": "key-1"}'),
    "header is a list": lambda: raw_header('["RS256"]'),
    "header is no JSON": lambda: raw_header("{alg: RS256}"),
    "header in UTF-16": lambda: f"{part(json.dumps({'alg': 'RS256', 'kid': 'key-1'}).encode('utf-16'))}.e30.e30",
    "header has more behind it": lambda: raw_header('{"alg": "RS256", "kid": "key-1"} {}'),
    "header is deep": lambda: raw_header('{"alg": "RS256", "kid": "key-1", "x": ' + "[" * 900 + "]" * 900 + "}x"),
    "typ of something else": lambda: signed(claims(), {"typ": "logout+jwt"}),
    "typ is no text": lambda: raw_header('{"alg": "RS256", "kid": "key-1", "typ": 1}'),
    "claim twice": lambda: signed(twice("username", "reader-2")),
    "issuer twice": lambda: signed(twice("iss", ISSUER)),
    "end twice": lambda: signed(twice("exp", NOW + 10**6)),
    "claims are a list": lambda: signed(b"[]"),
    "claims are no JSON": lambda: signed(b"sub=1"),
    "claims in Latin-1": lambda: signed('{"sub": "\xe9"}'.encode("latin-1")),
    "claims have NaN": lambda: signed(json.dumps(claims(x=float("nan"))).encode()),
    "claims are deep": lambda: signed(b'{"a":' * 900 + b"1" + b"}" * 900),
    "other issuer": lambda: signed(claims(iss=ISSUER + "2")),
    "issuer with a slash": lambda: signed(claims(iss=ISSUER + "/")),
    "issuer is a list": lambda: signed(claims(iss=[ISSUER])),
    "no issuer": lambda: signed(claims(iss=None)),
    "ID token": lambda: signed(claims(token_use="id", aud=CLIENT)),
    "use is a list": lambda: signed(claims(token_use=["access"])),
    "no use": lambda: signed(claims(token_use=None)),
    "refresh": lambda: signed(claims(token_use="refresh")),
    "other client": lambda: signed(claims(client_id="somebody-s")),
    "client is a list": lambda: signed(claims(client_id=[CLIENT])),
    "client in the audience only": lambda: signed(claims(client_id=None, aud=CLIENT)),
    "no subject": lambda: signed(claims(sub=None)),
    "subject is empty": lambda: signed(claims(sub="")),
    "subject is a number": lambda: signed(claims(sub=1)),
    "expired": lambda: signed(claims(exp=NOW - 60)),
    "expired in a text": lambda: signed(claims(exp=str(NOW + 60))),
    "no end": lambda: signed(claims(exp=None)),
    "end is true": lambda: signed(claims(exp=True)),
    "end beyond all time": lambda: signed(json.dumps(claims()).encode().replace(b'"exp": ', b'"exp": 9e999')),
    "end is negative": lambda: signed(claims(exp=-1)),
    "not yet valid": lambda: signed(claims(nbf=NOW + 600)),
    "issued tomorrow": lambda: signed(claims(iat=NOW + 86_400)),
    "huge": lambda: signed(claims(filler="x" * 9_000)),
    "empty signature": lambda: respelt(2, lambda _: ""),
    "signature of zeros": lambda: respelt(2, lambda _: part(bytes(256))),
    "signature cut": lambda: respelt(2, lambda text: text[:-4]),
    "signature longer": lambda: respelt(2, lambda text: text + "AAAA"),
    "signature with idle bits": lambda: respelt(2, idle_bits),
    "claims with idle bits": lambda: (
        f"{part({'alg': 'RS256', 'kid': 'key-1'})}.{idle_bits(part(padded_claims()))}.{part(b'x' * 256)}"
    ),
    "signature padded": lambda: respelt(2, lambda text: text + "=="),
    "signature in plain base64": lambda: respelt(2, lambda text: b64encode(urlsafe_b64decode(text + "==")).decode()),
    "signature with a line's end": lambda: respelt(2, lambda text: text[:10] + "\n" + text[10:]),
    "signature of another token": lambda: respelt(2, lambda _: signed(claims(sub="x")).split(".")[2]),
    "claims of another token": lambda: respelt(1, lambda _: part(claims(username="reader-2"))),
    "two parts": lambda: ".".join(signed(claims()).split(".")[:2]),
    "four parts": lambda: signed(claims()) + ".x",
    "five parts, a JWE": lambda: ".".join([part({"alg": "RSA-OAEP", "enc": "A256GCM", "kid": "key-1"}), "a", "a", "a", "a"]),
    "JSON form": lambda: json.dumps({"payload": part(claims()), "signature": "x"}).replace(" ", ""),
    "nothing": lambda: ".",
    "another script": lambda: "é.é.é",
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
async def test_no_other_token_is_taken(kind: str) -> None:
    token = FORGED[kind]()
    with pytest.raises(Unidentified) as refused:
        await accepted(token)
    assert len(str(refused.value)) < 200
    assert token not in str(refused.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_token_with_another_sign_in_it_is_taken(chosen: st.DataObject) -> None:
    right = VALID
    place = chosen.draw(st.integers(0, len(right) - 1))
    sign = chosen.draw(st.sampled_from("ABab01-_.=+/ \n\0é") | st.characters(codec="utf-8"))
    wrong = right[:place] + sign + right[place + 1 :]
    if wrong != right:
        with pytest.raises(Unidentified):
            run_accepted(wrong)


VALID = signed(claims(exp=NOW + 86_400))


SHORT = part(rsa.generate_private_key(65537, 1024).public_key().public_numbers().n.to_bytes(128, "big"))
"""The modulus of a key that is too short."""


def run_accepted(token: str) -> object:
    """The same without a loop: keys that are given need no waiting."""
    try:
        verifier(STATIC, lambda: NOW).claims(f"Bearer {token}").send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waited")


def test_the_untouched_one_is_taken_on_that_way_too() -> None:
    assert run_accepted(VALID)


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", VALID, f"Basic {VALID}", f"Bearer {VALID} {VALID}", f"Bearer {VALID},Bearer {VALID}",
        f"Bearer {VALID}, Bearer x", f"Bearer\t{VALID}", f"Bearer {VALID}\n", f"Token {VALID}",
    ],
)  # fmt: skip
def test_the_header_holds_one_bearer_token(header: str) -> None:
    with pytest.raises(Unidentified, match="Authorization header"):
        bearer(header, 8_192)
    assert bearer(f"bearer  {VALID}", 8_192) == VALID


@pytest.mark.parametrize(
    ("document", "taken"),
    [
        ({"keys": [{**key().as_dict(private=False), "use": "enc"}]}, False),
        ({"keys": [{**key().as_dict(private=False), "alg": "RS512"}]}, False),
        ({"keys": [{**key().as_dict(private=False), "kid": 7}]}, False),
        ({"keys": [OctKey.import_key(b"x" * 40, {"kid": "key-1"}).as_dict(), {"kty": "RSA"}]}, False),
        ({"keys": [{**key().as_dict(private=False), "n": SHORT}]}, False),
        ({"keys": [key().as_dict(private=True)]}, True),
    ],
)
async def test_which_keys_of_a_set_count(document: object, taken: bool) -> None:
    given_keys = TokenSettings(issuer=ISSUER, clients=(CLIENT,), jwks=json.dumps(document))
    if taken:
        assert await accepted(signed(claims()), given_keys)
    else:
        with pytest.raises(Fatal, match="TIDEGATE_TOKENS_JWKS"):
            await accepted(signed(claims()), given_keys)


def test_a_set_that_is_none_and_settings_that_let_nobody_in() -> None:
    with pytest.raises(Transient, match="no JWKS"):
        verifier(TokenSettings(issuer=ISSUER, clients=(CLIENT,), jwks="nonsense"))
    least = {"TIDEGATE_ISSUER": ISSUER, "TIDEGATE_CLIENTS": CLIENT}
    assert read(TokenSettings, least).keys_url == f"{ISSUER}/.well-known/jwks.json"
    for change in (
        {"TIDEGATE_CLIENTS": ","},
        {"TIDEGATE_JWKS_URL": "http://issuer.example/keys"},
        {"TIDEGATE_USES": "x"},
    ):
        with pytest.raises(Fatal):
            read(TokenSettings, {**least, **change})


def test_a_digest_is_no_signature() -> None:
    text = f"{part({'alg': 'RS256', 'kid': 'key-1'})}.{part(claims())}"
    with pytest.raises(Unidentified):
        run_accepted(f"{text}.{part(hashlib.sha256(text.encode()).digest())}")
