// What torch asks a CUDA device for before autograd records an operation on it: answers for a device that is not there.
// Loaded before torch, it lets tensors without numbers (FakeTensorMode) stand on "cuda" and have gradients.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;
const c10::Device ONLY(CUDA, 0);
const c10::Stream STREAM(c10::Stream::DEFAULT, ONLY);

struct OneDevice final : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::Device getDevice() const override { return ONLY; }
  c10::Device exchangeDevice(c10::Device) const override { return ONLY; }
  c10::Stream getStream(c10::Device) const noexcept override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return STREAM; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, OneDevice)
namespace at {
using ::CUDAHooks;  // torch asks for the class of this name
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
