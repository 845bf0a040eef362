// Look again for tasks.
setTimeout(() => location.reload(), 30000);
