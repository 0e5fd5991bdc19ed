// Makes every sync of the program it is loaded into (LD_PRELOAD) take 5 ms longer, as on a slow
// disk.
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

namespace {

constexpr timespec kDelay{0, 5'000'000};

int Slowly(const char* name, int descriptor) {
  nanosleep(&kDelay, nullptr);
  const auto real = reinterpret_cast<int (*)(int)>(dlsym(RTLD_NEXT, name));
  return real(descriptor);
}

}  // namespace

extern "C" int fsync(int descriptor) { return Slowly("fsync", descriptor); }
extern "C" int fdatasync(int descriptor) { return Slowly("fdatasync", descriptor); }
