#include "open_drafts.h"

#include "failure.h"

namespace lfm2 {

std::unique_ptr<Source> draft_source(const std::string& given, const Manifest& wanted, const std::string& path, uint32_t threads) {
  if (given.empty()) return nullptr;
  if (wanted.max_verified < 2) throw Failure("--draft: " + path + " verifies no drafts; export it with options.speculation");
  if (given == "lookup") return std::make_unique<Lookup>();
  const std::string option = "--draft " + given;
  std::unique_ptr<ArtifactFiles> artifact;
  try {
    artifact = open_artifact(given);
  } catch (const Failure& failure) {
    throw Failure(option + ": expected lookup, or an artifact: " + failure.what());
  }
  const Manifest manifest = read_manifest(*artifact);
  if (manifest.vocab != wanted.vocab || manifest.tokenizer_sha256 != wanted.tokenizer_sha256) {
    throw Failure(option + ": another vocabulary than " + path + " has");
  }
  if (manifest.max_verified < 2) throw Failure(option + ": cannot take back what it guesses; export it with options.speculation");
  return std::make_unique<SmallerModel>(*artifact, manifest, threads);
}

}  // namespace lfm2
