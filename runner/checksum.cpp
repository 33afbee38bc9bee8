#include "checksum.h"

#include "failure.h"

namespace lfm2 {

Sha256::Sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
  if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) {
    throw Failure("OpenSSL offers no SHA-256");
  }
}

void Sha256::update(const void* data, size_t size) {
  if (size != 0 && EVP_DigestUpdate(context_.get(), data, size) != 1) throw Failure("OpenSSL failed");
}

std::string Sha256::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_DigestFinal_ex(context_.get(), digest, &size) != 1) throw Failure("OpenSSL failed");
  std::string text;
  char two[3];
  for (unsigned int i = 0; i < size; ++i) {
    std::snprintf(two, sizeof two, "%02x", digest[i]);
    text += two;
  }
  return text;
}

std::string sha256(std::string_view data) {
  Sha256 sha;
  sha.update(data);
  return sha.hex();
}

}  // namespace lfm2
