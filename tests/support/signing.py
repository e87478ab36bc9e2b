"Ed25519 keys as PEM text."
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

def pem(key): return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
def public(key): return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
