#include "common/certificates.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <cctype>
#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/digest.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxPemBytes = 64 << 10;
constexpr int kSerialBits = 127;
constexpr int kX509Version3 = 2;  // it counts from 0
constexpr std::size_t kMaxCommonNameBytes = 64;

template <typename T, void (*Free)(T*)>
struct Freer {
  void operator()(T* object) const { Free(object); }
};
using Key = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freer<X509, X509_free>>;
using Request = std::unique_ptr<X509_REQ, Freer<X509_REQ, X509_REQ_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Freer<X509_EXTENSION, X509_EXTENSION_free>>;
using Number = std::unique_ptr<BIGNUM, Freer<BIGNUM, BN_free>>;
using Bio = std::unique_ptr<BIO, Freer<BIO, BIO_free_all>>;

absl::Status Refused(absl::string_view what) {
  char why[256] = "no reason given";
  if (const unsigned long code = ERR_get_error(); code != 0) {
    ERR_error_string_n(code, why, sizeof(why));
  }
  ERR_clear_error();
  return absl::InternalError(absl::StrCat("OpenSSL cannot ", what, ": ", why));
}

absl::Status NoSuchThing(absl::string_view what) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat("this is no ", what, " in PEM form"));
}

Bio PemReader(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(std::min(pem.size(), kMaxPemBytes))));
}

absl::StatusOr<Key> ReadKey(const std::string& pem) {
  Key key(PEM_read_bio_PrivateKey(PemReader(pem).get(), nullptr, nullptr, const_cast<char*>("")));
  if (key == nullptr) return NoSuchThing("private key");
  return key;
}

absl::StatusOr<Certificate> ReadX509(const std::string& pem) {
  Certificate certificate(PEM_read_bio_X509(PemReader(pem).get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) return NoSuchThing("certificate");
  return certificate;
}

absl::StatusOr<Request> ReadRequest(const std::string& pem) {
  Request request(PEM_read_bio_X509_REQ(PemReader(pem).get(), nullptr, nullptr, nullptr));
  if (request == nullptr) return NoSuchThing("certificate request");
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  // Whoever asks must have the key.
  if (key == nullptr || X509_REQ_verify(request.get(), key) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError("the certificate request is not signed with its key");
  }
  const bool strong = (EVP_PKEY_get_base_id(key) == EVP_PKEY_EC && EVP_PKEY_get_bits(key) >= 256) ||
                      (EVP_PKEY_get_base_id(key) == EVP_PKEY_RSA &&
                       EVP_PKEY_get_bits(key) >= 2048 && EVP_PKEY_get_bits(key) <= 8192);
  if (!strong) {
    return absl::InvalidArgumentError(
        "the certificate request is for a weak key; take ECDSA P-256 or RSA with 2048 bits");
  }
  return request;
}

template <typename Write>
absl::StatusOr<std::string> ToPem(absl::string_view what, const Write& write) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || write(bio.get()) != 1) return Refused(absl::StrCat("write a ", what));
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<std::size_t>(size));
}

absl::StatusOr<std::string> KeyToPem(EVP_PKEY* key) {
  return ToPem("private key", [key](BIO* bio) {
    return PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  });
}

absl::Status AddExtension(X509* certificate, X509* issuer, int id, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_nconf_nid(nullptr, &context, id, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return Refused(absl::StrCat("add ", OBJ_nid2sn(id), " to a certificate"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Certificate> NewCertificate(const std::string& name, EVP_PKEY* key, absl::Time now,
                                           absl::Duration lifetime) {
  Certificate certificate(X509_new());
  const Number serial(BN_new());
  const std::time_t from = absl::ToTimeT(now - kCertificateBackdate);
  const std::time_t until = absl::ToTimeT(now + lifetime);
  const auto* text = reinterpret_cast<const unsigned char*>(name.c_str());
  if (certificate == nullptr || serial == nullptr ||
      X509_set_version(certificate.get(), kX509Version3) != 1 ||
      BN_rand(serial.get(), kSerialBits, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) != 1 ||
      BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate.get())) == nullptr ||
      ASN1_TIME_set(X509_getm_notBefore(certificate.get()), from) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(certificate.get()), until) == nullptr ||
      X509_NAME_add_entry_by_NID(X509_get_subject_name(certificate.get()), NID_commonName,
                                 MBSTRING_UTF8, text, static_cast<int>(name.size()), -1, 0) != 1 ||
      X509_set_pubkey(certificate.get(), key) != 1) {
    return Refused("make a certificate");
  }
  return certificate;
}

// Signs with the authority, or with the certificate's own key where issuer is the certificate.
absl::StatusOr<std::string> Sign(X509* certificate, X509* issuer, EVP_PKEY* key) {
  if (X509_set_issuer_name(certificate, X509_get_subject_name(issuer)) != 1) {
    return Refused("name the issuer of a certificate");
  }
  RETURN_IF_ERROR(AddExtension(certificate, issuer, NID_subject_key_identifier, "hash"));
  RETURN_IF_ERROR(AddExtension(certificate, issuer, NID_authority_key_identifier, "keyid"));
  if (X509_sign(certificate, key, EVP_sha256()) == 0) return Refused("sign a certificate");
  return ToPem("certificate",
               [certificate](BIO* bio) { return PEM_write_bio_X509(bio, certificate); });
}

// A leaf for one purpose.
absl::StatusOr<std::string> SignLeaf(const KeyAndCertificate& authority, X509* certificate,
                                     const char* purpose, const std::string& alternative_names) {
  ASSIGN_OR_RETURN(const Key key, ReadKey(authority.key_pem));
  ASSIGN_OR_RETURN(const Certificate issuer, ReadX509(authority.certificate_pem));
  RETURN_IF_ERROR(
      AddExtension(certificate, issuer.get(), NID_basic_constraints, "critical,CA:FALSE"));
  RETURN_IF_ERROR(
      AddExtension(certificate, issuer.get(), NID_key_usage, "critical,digitalSignature"));
  RETURN_IF_ERROR(AddExtension(certificate, issuer.get(), NID_ext_key_usage, purpose));
  if (!alternative_names.empty()) {
    RETURN_IF_ERROR(
        AddExtension(certificate, issuer.get(), NID_subject_alt_name, alternative_names));
  }
  return Sign(certificate, issuer.get(), key.get());
}

// "DNS:name" or "IP:address"; INVALID_ARGUMENT for what is neither, before OpenSSL's syntax sees
// it.
absl::StatusOr<std::string> AlternativeName(const std::string& host) {
  unsigned char address[16];
  if (inet_pton(AF_INET, host.c_str(), address) == 1 ||
      inet_pton(AF_INET6, host.c_str(), address) == 1) {
    return absl::StrCat("IP:", host);
  }
  const bool is_name =
      !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-' ||
               c == '_' || c == '*';
      });
  if (!is_name) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", host.substr(0, 80), "' is neither a host name nor an IP address"));
  }
  return absl::StrCat("DNS:", host);
}

absl::Time TimeOf(const ASN1_TIME* time) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromTimeT(timegm(&parts));
}

}  // namespace

absl::StatusOr<std::string> MakePrivateKey() {
  const Key key(EVP_EC_gen("P-256"));
  if (key == nullptr) return Refused("make a key");
  return KeyToPem(key.get());
}

absl::StatusOr<KeyAndCertificate> MakeAuthority(const std::string& name, absl::Time now,
                                                absl::Duration lifetime) {
  KeyAndCertificate made;
  ASSIGN_OR_RETURN(made.key_pem, MakePrivateKey());
  ASSIGN_OR_RETURN(const Key key, ReadKey(made.key_pem));
  ASSIGN_OR_RETURN(const Certificate certificate,
                   NewCertificate(name.substr(0, kMaxCommonNameBytes), key.get(), now, lifetime));
  X509* self = certificate.get();
  RETURN_IF_ERROR(AddExtension(self, self, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  RETURN_IF_ERROR(AddExtension(self, self, NID_key_usage, "critical,keyCertSign,cRLSign"));
  // Its own key's id is what those that it signs refer to.
  RETURN_IF_ERROR(AddExtension(self, self, NID_subject_key_identifier, "hash"));
  if (X509_set_issuer_name(self, X509_get_subject_name(self)) != 1 ||
      X509_sign(self, key.get(), EVP_sha256()) == 0) {
    return Refused("sign a certificate");
  }
  ASSIGN_OR_RETURN(made.certificate_pem, ToPem("certificate", [self](BIO* bio) {
                     return PEM_write_bio_X509(bio, self);
                   }));
  return made;
}

absl::StatusOr<KeyAndCertificate> MakeServerCertificate(const KeyAndCertificate& authority,
                                                        const std::vector<std::string>& hosts,
                                                        absl::Time now, absl::Duration lifetime) {
  if (hosts.empty()) {
    return absl::InvalidArgumentError("a server's certificate needs the names clients reach it by");
  }
  std::vector<std::string> names;
  for (const std::string& host : hosts) {
    ASSIGN_OR_RETURN(std::string name, AlternativeName(host));
    names.push_back(std::move(name));
  }
  KeyAndCertificate made;
  ASSIGN_OR_RETURN(made.key_pem, MakePrivateKey());
  ASSIGN_OR_RETURN(const Key key, ReadKey(made.key_pem));
  ASSIGN_OR_RETURN(
      const Certificate certificate,
      NewCertificate(hosts.front().substr(0, kMaxCommonNameBytes), key.get(), now, lifetime));
  ASSIGN_OR_RETURN(made.certificate_pem,
                   SignLeaf(authority, certificate.get(), "serverAuth", absl::StrJoin(names, ",")));
  return made;
}

absl::StatusOr<std::string> MakeCertificateRequest(const std::string& key_pem,
                                                   const std::string& name) {
  ASSIGN_OR_RETURN(const Key key, ReadKey(key_pem));
  const Request request(X509_REQ_new());
  const auto* text = reinterpret_cast<const unsigned char*>(name.c_str());
  if (request == nullptr || X509_REQ_set_version(request.get(), 0) != 1 ||
      X509_NAME_add_entry_by_NID(X509_REQ_get_subject_name(request.get()), NID_commonName,
                                 MBSTRING_UTF8, text, static_cast<int>(name.size()), -1, 0) != 1 ||
      X509_REQ_set_pubkey(request.get(), key.get()) != 1 ||
      X509_REQ_sign(request.get(), key.get(), EVP_sha256()) == 0) {
    return Refused("make a certificate request");
  }
  return ToPem("certificate request",
               [&](BIO* bio) { return PEM_write_bio_X509_REQ(bio, request.get()); });
}

absl::StatusOr<std::string> KeyDigestOfRequest(const std::string& request_pem) {
  ASSIGN_OR_RETURN(const Request request, ReadRequest(request_pem));
  unsigned char* bytes = nullptr;
  const int size = i2d_PUBKEY(X509_REQ_get0_pubkey(request.get()), &bytes);
  if (size <= 0) return Refused("read the key of a certificate request");
  const std::string digest = DigestOf(
      absl::string_view(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size)));
  OPENSSL_free(bytes);
  return digest;
}

absl::StatusOr<std::string> SignWorkerCertificate(const KeyAndCertificate& authority,
                                                  const std::string& request_pem,
                                                  const std::string& worker_id, absl::Time now,
                                                  absl::Duration lifetime) {
  ASSIGN_OR_RETURN(const Request request, ReadRequest(request_pem));
  ASSIGN_OR_RETURN(const Certificate certificate,
                   NewCertificate(worker_id, X509_REQ_get0_pubkey(request.get()), now, lifetime));
  return SignLeaf(authority, certificate.get(), "clientAuth", "");
}

absl::StatusOr<CertificateFacts> ReadCertificate(const std::string& certificate_pem) {
  ASSIGN_OR_RETURN(const Certificate certificate, ReadX509(certificate_pem));
  CertificateFacts facts;
  char name[kMaxCommonNameBytes + 1] = {};
  if (X509_NAME_get_text_by_NID(X509_get_subject_name(certificate.get()), NID_commonName, name,
                                sizeof(name)) > 0) {
    facts.common_name = name;
  }
  facts.valid_from = TimeOf(X509_get0_notBefore(certificate.get()));
  facts.valid_until = TimeOf(X509_get0_notAfter(certificate.get()));
  return facts;
}

absl::Status CheckKeyPair(const KeyAndCertificate& pair) {
  ASSIGN_OR_RETURN(const Key key, ReadKey(pair.key_pem));
  ASSIGN_OR_RETURN(const Certificate certificate, ReadX509(pair.certificate_pem));
  if (X509_check_private_key(certificate.get(), key.get()) == 1) return absl::OkStatus();
  ERR_clear_error();
  return absl::InvalidArgumentError("the private key is not that of the certificate");
}

}  // namespace offshoot
