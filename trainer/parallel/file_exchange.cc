#include "trainer/parallel/file_exchange.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <system_error>
#include <utility>
#include <vector>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;

// Files are summed piece by piece: a round needs no memory beside the tensor's.
constexpr std::int64_t kPieceBytes = 1 << 20;

// At the beginning of a file, in the host's byte order (as is all behind it).
struct Header {
  std::array<char, 8> magic = {'O', 'F', 'F', 'S', 'U', 'M', '0', '1'};
  std::int64_t round = 0;
  std::int64_t rank = 0;
  std::int64_t bytes = 0;  // of numbers behind it
  // No two files are the same, so that the one that keeps them by their digest (the coordinator)
  // may remove each by itself.
  std::array<std::uint32_t, 4> random = {};
  bool operator==(const Header&) const = default;
};

class FileExchange : public Collective {
 public:
  FileExchange(const RankEnvironment& environment, std::string directory, ExchangeLine line)
      : rank_(environment.rank),
        world_size_(environment.world_size),
        directory_(std::move(directory)),
        line_(std::move(line)) {
    std::error_code failure;
    fs::create_directories(directory_, failure);
    if (failure) throw CannotWrite(directory_, failure);
    std::random_device device;
    for (std::uint32_t& word : random_) word = device();
  }

  std::int64_t rank() const override { return rank_; }
  std::int64_t world_size() const override { return world_size_; }

  void AllReduceSum(at::Tensor& tensor) override {
    at::Tensor host = tensor.cpu().contiguous();
    ++round_;
    const Header header = {.round = round_,
                           .rank = rank_,
                           .bytes = host.numel() * static_cast<std::int64_t>(host.element_size()),
                           .random = random_};
    line_.announce(round_, Write(header, host));
    std::vector<std::string> paths;
    for (std::int64_t rank = 0; rank < world_size_; ++rank) {
      paths.push_back(line_.await(round_, rank));
      if (paths.back().empty()) {
        throw Error(Reason::kRankLost,
                    "rank " + std::to_string(rank_) + " of " + std::to_string(world_size_) +
                        " waited for rank " + std::to_string(rank) +
                        "'s part of a sum, and it will not come: this rank was ended meanwhile.");
      }
    }
    switch (host.scalar_type()) {
      case at::kFloat:
        Sum(paths, header, host.mutable_data_ptr<float>(), host.numel());
        break;
      case at::kDouble:
        Sum(paths, header, host.mutable_data_ptr<double>(), host.numel());
        break;
      default:
        throw Error(Reason::kInternal, "ranks exchange float32 and float64 only.");
    }
    if (!host.is_same(tensor)) tensor.copy_(host);
    std::error_code ignored;  // another rank of this worker has removed it, perhaps
    for (const std::string& path : std::exchange(read_, std::move(paths))) {
      fs::remove(path, ignored);
    }
  }

  void Broadcast(at::Tensor& tensor) override {
    if (rank_ != 0) tensor.zero_();
    AllReduceSum(tensor);
  }

  void Barrier() override {
    at::Tensor token = at::zeros({1}, at::TensorOptions(at::kFloat));
    AllReduceSum(token);
  }

 private:
  static Error CannotWrite(const std::string& path, const std::error_code& failure) {
    return Error(failure == std::errc::no_space_on_device ? Reason::kDiskFull : Reason::kInternal,
                 "cannot write " + path + ": " + failure.message() + ".");
  }

  // Whole or not there. Not synced: what a crash of the machine takes, it takes the attempt with.
  std::string Write(const Header& header, const at::Tensor& host) const {
    const std::string path = directory_ + "/rank-" + std::to_string(header.rank) + ".round-" +
                             std::to_string(header.round);
    const std::string partial = path + ".tmp";
    errno = 0;
    std::ofstream file(partial, std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(&header), sizeof(header));
    file.write(static_cast<const char*>(host.const_data_ptr()), header.bytes);
    file.close();
    if (!file) {
      throw CannotWrite(partial, {errno != 0 ? errno : EIO, std::generic_category()});
    }
    std::error_code failure;
    fs::rename(partial, path, failure);
    if (failure) throw CannotWrite(path, failure);
    return path;
  }

  static Error NotUsable(const std::string& path, std::int64_t rank) {
    return Error(Reason::kInternal, "the part of rank " + std::to_string(rank) + " in " + path +
                                        " is not one of this round; are all workers and trainers "
                                        "of the same version?");
  }

  template <typename Number>
  static void Sum(const std::vector<std::string>& paths, Header expected, Number* sum,
                  std::int64_t count) {
    std::vector<std::ifstream> files;
    for (std::size_t rank = 0; rank < paths.size(); ++rank) {
      std::ifstream& file = files.emplace_back(paths[rank], std::ios::binary);
      Header header;
      file.read(reinterpret_cast<char*>(&header), sizeof(header));
      expected.rank = static_cast<std::int64_t>(rank);
      expected.random = header.random;
      if (!file || !(header == expected)) throw NotUsable(paths[rank], expected.rank);
    }
    constexpr auto kPiece = kPieceBytes / static_cast<std::int64_t>(sizeof(Number));
    std::vector<Number> piece(static_cast<std::size_t>(std::min(count, kPiece)));
    for (std::int64_t begin = 0; begin < count; begin += kPiece) {
      const std::int64_t numbers = std::min(kPiece, count - begin);
      for (std::size_t rank = 0; rank < files.size(); ++rank) {
        Number* into = rank == 0 ? sum + begin : piece.data();
        files[rank].read(reinterpret_cast<char*>(into),
                         numbers * static_cast<std::int64_t>(sizeof(Number)));
        if (!files[rank]) throw NotUsable(paths[rank], static_cast<std::int64_t>(rank));
        if (rank == 0) continue;
        for (std::int64_t i = 0; i < numbers; ++i)
          sum[begin + i] += piece[static_cast<std::size_t>(i)];
      }
    }
  }

  const std::int64_t rank_;
  const std::int64_t world_size_;
  const std::string directory_;
  const ExchangeLine line_;
  std::array<std::uint32_t, 4> random_ = {};
  std::int64_t round_ = 0;
  std::vector<std::string> read_;  // the last round's files
};

}  // namespace

std::unique_ptr<Collective> MakeFileExchange(const RankEnvironment& environment,
                                             std::string directory, ExchangeLine line) {
  return std::make_unique<FileExchange>(environment, std::move(directory), std::move(line));
}

}  // namespace offshoot::trainer
